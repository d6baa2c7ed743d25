"""Errors in OpenAI's format, for the views that its SDKs use.

HTTP/1.1 400 Bad Request

{"error": {"message": "input: required", "type": "invalid_request_error", "code": "invalid_request", "param": "input"}}
"""

from http import HTTPStatus
from typing import Final

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import ErrorFormat
from stagebus.gateway.api.headers import SHOWN_RUN
from stagebus.gateway.api.problems import error_headers
from stagebus.gateway.api.responses import JSON, json_response
from stagebus.shared.errors import InvalidRequest, StagebusError

# Keeps the SDKs from repeating a request that has created a run, which would create another one.
NO_RETRY: Final = {"x-should-retry": "false"}
_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}


class OpenAIErrorDetails(BaseModel):
    """The details of an error."""

    message: str = Field(description="the reason in words")
    type: str = Field(
        description="`invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`"
    )
    code: str | None = Field(description="stable; one of the codes of problem details")
    param: str | None = Field(description="the invalid field or parameter, if there is one")


class OpenAIError(BaseModel):
    """An error in OpenAI's format."""

    error: OpenAIErrorDetails = Field(description="the error")


def openai_error(message: str, kind: str, code: str, param: str | None = None) -> OpenAIError:
    """Returns an error."""
    return OpenAIError(error=OpenAIErrorDetails(message=message, type=kind, code=code, param=param))


def _render(request: Request, exc: StagebusError) -> Response:
    status = OPENAI_ERRORS.status_of(exc)
    server_error = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    field = exc.errors[0]["field"] if isinstance(exc, InvalidRequest) and exc.errors else ""
    error = openai_error(str(exc), _TYPES.get(status, server_error), exc.code, field.partition(".")[0] or None)
    has_created = request.method == "POST" and hasattr(request.state, SHOWN_RUN)
    is_repeatable = not has_created or "idempotency-key" in request.headers
    return json_response(error, status, {**(error_headers(exc) or {}), **({} if is_repeatable else NO_RETRY)})


OPENAI_ERRORS: Final = ErrorFormat(JSON, OpenAIError, _render, {422: 400})
