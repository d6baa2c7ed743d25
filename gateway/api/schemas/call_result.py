"""The bodies of `POST /runs/{run_id}/calls/{call_id}/result` and `…/claim`, and the answers."""

from typing import Any

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.validation import parse_form
from stagebus.shared.call_errors import ResultTooLarge
from stagebus.shared.domain.call_results import HOLDER_MAX_CHARS, CallResult

_REF = Field(
    default=None,
    max_length=64,
    description="the call's `ref`; with it, a call that has the same id after a loss of data is left alone",
)


class GiveResult(WireModel):
    """The result of a call."""

    content: str = Field(description="the result as the model gets it; at most STAGEBUS_TOOL_RESULT_MAX_BYTES of UTF-8")
    is_error: bool = Field(default=False, description="the call failed, and `content` says why")
    ref: str | None = _REF


class ClaimCall(WireModel):
    """A client's claim to run a call."""

    holder: str = Field(
        min_length=1,
        max_length=HOLDER_MAX_CHARS,
        description="a name of the client, unique among all clients of the run",
    )
    ref: str | None = _REF


class ResultAccepted(Answer):
    """The call has this result."""

    run_id: str = Field(description="the run's id")
    call_id: str = Field(description="the call's id")


class CallClaim(Answer):
    """The claim on a call."""

    until: int = Field(description="the claim's end, Unix ms; claim again with the same `holder` to renew it")


def parse_result(body: dict[str, Any], max_bytes: int) -> tuple[CallResult, str | None]:
    """Parses a result; returns it and the `ref` of its call.

    Raises:
        InvalidRequest: the error names every invalid field.
        ResultTooLarge: the content is longer than `max_bytes`.
    """
    form = parse_form(GiveResult, body)
    if len(form.content.encode()) > max_bytes:
        raise ResultTooLarge(max_bytes)
    return CallResult(content=form.content, is_error=form.is_error), form.ref
