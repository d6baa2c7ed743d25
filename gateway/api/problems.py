"""Renders errors as problem details, with a stable `type` and a `detail` that says what to do.

    HTTP/1.1 404 Not Found
    content-type: application/problem+json

    {"type": "/problems/run_not_found", "title": "Run not found", "status": 404, "code": "run_not_found",
     "detail": "there is no run '01J…': it never existed, or its retention time is over", "errors": []}

Redis errors are translated here, for all handlers. An error that its HTTP status fully describes has the type
`about:blank`. An endpoint may declare another format for its errors: `Endpoint.error_format`.
Spec: https://www.rfc-editor.org/rfc/rfc9457
"""

import logging
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from math import ceil
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from stagebus.gateway.api.endpoint import ErrorFormat
from stagebus.gateway.api.method_router import endpoint_of
from stagebus.gateway.api.params import wants_stream
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import FieldError, Problem, ProblemType
from stagebus.gateway.api.urls import Urls, urls_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.response import retry_response
from stagebus.shared.access_errors import Forbidden, OverLimit, Unauthenticated
from stagebus.shared.call_errors import CallClaimed
from stagebus.shared.errors import Draining, InvalidRequest, StagebusError, StorageUnavailable
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.redis_client import RedisError, storage_errors
from stagebus.shared.thread_errors import RunMerged, ThreadBusy

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 2
# Spec: https://www.rfc-editor.org/rfc/rfc6750#section-3
CHALLENGE: Final = 'Bearer realm="stagebus"'

# nginx's status for a client that disconnected before the response; only the access log shows it.
CLIENT_CLOSED_REQUEST: Final = 499


def render_problem(request: Request, exc: StagebusError) -> Response:
    """Renders an error as problem details."""
    problem = Problem(
        type=urls_of(request).problem(exc.code),
        title=exc.title,
        status=exc.status_hint,
        detail=str(exc),
        code=exc.code,
        errors=[FieldError(**error) for error in exc.errors] if isinstance(exc, InvalidRequest) else [],
        run_id=exc.run_id if isinstance(exc, ThreadBusy | RunMerged) else None,
        request_digest=exc.request_digest if isinstance(exc, ThreadBusy) else None,
    )
    return _problem_response(problem, error_headers(exc))


PROBLEM_DETAILS: Final = ErrorFormat(MEDIA_TYPE, Problem, render_problem)


def error_headers(exc: StagebusError) -> Mapping[str, str] | None:
    """Returns the headers that tell generic HTTP clients what to do."""
    match exc:
        case Unauthenticated():
            return {"WWW-Authenticate": CHALLENGE + (', error="invalid_token"' if exc.is_bad_token else "")}
        case Forbidden():
            return {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{exc.scope}"'}
        case OverLimit():
            return {"Retry-After": str(max(1, ceil(exc.retry_after_s)))}
        case CallClaimed():
            return {"Retry-After": str(max(1, ceil(exc.until_ms / 1000 - time.time())))}
        case _ if exc.status_hint == HTTPStatus.SERVICE_UNAVAILABLE:
            return {"Retry-After": str(RETRY_AFTER_S)}
        case _:
            return None


def answer_error(request: Request, exc: StagebusError) -> Response:
    """Renders an error in the format of the request's endpoint."""
    endpoint = endpoint_of(request.scope)
    error_format = (endpoint and endpoint.error_format) or PROBLEM_DETAILS
    return error_format.render(request, exc)


def answer_internal(request: Request) -> Response:
    """Returns the response to an unexpected error; the client does not see its cause."""
    message = "internal error; the gateway's log shows the cause under this X-Request-ID"
    return answer_error(request, StagebusError(message))


async def answer_cut_off(request: Request) -> Response:
    """Returns the response to a request that a shutdown cannot wait for."""
    return await _answer_stagebus(request, Draining())


async def _answer_stagebus(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, StagebusError)
    if exc.retryable and _is_stream(request):
        level = logging.DEBUG if isinstance(exc, StorageUnavailable) else logging.WARNING  # an outage is logged once
        logger.log(level, "telling the client of a stream to reconnect: %s", exc)
        wait_ms = ceil(exc.retry_after_s * 1000) if isinstance(exc, OverLimit) else 0
        return retry_response(max(wait_ms, gateway_of(request).settings.sse_retry_ms))
    return answer_error(request, exc)


def _is_stream(request: Request) -> bool:
    endpoint = endpoint_of(request.scope)
    return endpoint is not None and endpoint.is_stream and wants_stream(request)


async def _answer_redis(request: Request, exc: Exception) -> Response:
    OUTAGE.report_failure(logger, "a request", exc)
    try:
        with storage_errors():
            raise exc
    except StagebusError as translated:
        return await _answer_stagebus(request, translated)


async def _answer_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status = HTTPStatus(exc.status_code)
    allowed = (exc.headers or {}).get("Allow")
    problem = Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=f"this URL supports {allowed}"
        if allowed
        else f"{status.description}; see GET {urls_of(request).openapi()}",
        code=status.name.lower(),
    )
    return _problem_response(problem, exc.headers)


async def _answer_disconnected(_request: Request, _exc: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _problem_response(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    return json_response(problem, problem.status, headers, MEDIA_TYPE)


HANDLERS: Final[Mapping[type[Exception], ExceptionHandler]] = {
    StagebusError: _answer_stagebus,
    RedisError: _answer_redis,
    HTTPException: _answer_http,
    ClientDisconnect: _answer_disconnected,
}


def problem_types(urls: Urls) -> Iterator[ProblemType]:
    """Yields every error with its own code, for clients that follow a problem's `type`."""
    for error in _family(StagebusError):
        if error is StagebusError or "code" in vars(error):
            yield ProblemType(
                type=urls.problem(error.code),
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
