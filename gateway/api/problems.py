"""Errors as answers: problem details with a stable `type` and a `detail` that says what to do.

    HTTP/1.1 404 Not Found
    content-type: application/problem+json

    {"type": "/problems/run_not_found", "title": "Run not found", "status": 404, "code": "run_not_found",
     "detail": "there is no run '01J…': it never existed, or its retention time is over", "errors": []}

Redis's errors become ours here, once for all handlers. What a plain HTTP status says all
about has the type `about:blank`.
Spec: https://www.rfc-editor.org/rfc/rfc9457
"""

import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from math import ceil
from typing import Final

from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from stagebus.gateway.api import routes
from stagebus.gateway.api.params import wants_stream
from stagebus.gateway.api.responses import answer
from stagebus.gateway.api.schemas.answers import FieldError, Problem, ProblemType
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.response import ask_again
from stagebus.shared.access_errors import Forbidden, OverLimit, Unauthenticated
from stagebus.shared.errors import Draining, InvalidRequest, StagebusError
from stagebus.shared.storage.redis_client import storage_errors

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
# Spec: https://www.rfc-editor.org/rfc/rfc6750#section-3
CHALLENGE: Final = 'Bearer realm="stagebus"'

# nginx's word for a client that went away before its answer: only the access log sees it.
CLIENT_CLOSED_REQUEST: Final = 499


def answer_error(exc: StagebusError) -> Response:
    """What the gateway says when nothing nearer handles the error."""
    problem = Problem(
        type=routes.problem_url(exc.code),
        title=exc.title,
        status=exc.status_hint,
        detail=str(exc),
        code=exc.code,
        errors=[FieldError(**error) for error in exc.errors] if isinstance(exc, InvalidRequest) else [],
    )
    return _answer(problem, _headers(exc))


def _headers(exc: StagebusError) -> Mapping[str, str] | None:
    """What an error says in a header, for clients that know no body of ours."""
    match exc:
        case Unauthenticated():
            return {"WWW-Authenticate": CHALLENGE + (', error="invalid_token"' if exc.is_bad_token else "")}
        case Forbidden():
            return {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{exc.scope}"'}
        case OverLimit():
            return {"Retry-After": str(max(1, ceil(exc.retry_after_s)))}
        case _ if exc.status_hint == HTTPStatus.SERVICE_UNAVAILABLE:
            return {"Retry-After": str(RETRY_AFTER_S)}
        case _:
            return None


def answer_internal() -> Response:
    """What a client sees of an unexpected error."""
    return answer_error(StagebusError("an internal error; the gateway's log has its cause under this X-Request-ID"))


async def answer_cut_off(request: Request) -> Response:
    """What a client sees of a request that a shutdown could not wait for."""
    return await _answer_stagebus(request, Draining())


async def _answer_stagebus(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, StagebusError)
    if exc.retryable and _is_stream(request):
        logger.warning("a stream has to be asked for again: %s", exc)
        wait_ms = ceil(exc.retry_after_s * 1000) if isinstance(exc, OverLimit) else 0
        return ask_again(max(wait_ms, gateway_of(request).settings.sse_retry_ms))
    return answer_error(exc)


def _is_stream(request: Request) -> bool:
    return getattr(request.scope.get("route"), "path", "") in routes.STREAMS and wants_stream(request)


async def _answer_redis(request: Request, exc: Exception) -> Response:
    logger.warning("Redis: %s", exc)
    try:
        with storage_errors():
            raise exc
    except StagebusError as translated:
        return await _answer_stagebus(request, translated)


async def _answer_http(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status = HTTPStatus(exc.status_code)
    allowed = (exc.headers or {}).get("Allow")
    problem = Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=f"this URL takes {allowed}" if allowed else f"{status.description}; GET {routes.OPENAPI} tells more",
        code=status.name.lower(),
    )
    return _answer(problem, exc.headers)


async def _answer_nobody(_request: Request, _exc: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _answer(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    return answer(problem, problem.status, headers, MEDIA_TYPE)


HANDLERS: Final[Mapping[type[Exception], ExceptionHandler]] = {
    StagebusError: _answer_stagebus,
    RedisError: _answer_redis,
    HTTPException: _answer_http,
    ClientDisconnect: _answer_nobody,
}


def problem_types() -> Iterator[ProblemType]:
    """Every error of ours that has a code of its own, for those who follow a problem's `type`."""
    for error in _family(StagebusError):
        if error is StagebusError or "code" in vars(error):
            yield ProblemType(
                type=routes.problem_url(error.code),
                title=error.title,
                status=error.status_hint,
                code=error.code,
                description=" ".join((error.__doc__ or "").split()),
                retryable=error.retryable,
            )


def _family(error: type[StagebusError]) -> Iterator[type[StagebusError]]:
    yield error
    for child in error.__subclasses__():
        yield from _family(child)
