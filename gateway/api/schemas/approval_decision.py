"""The body of POST /runs/{run_id}/approvals/{call_id}: its model, and the decision that it becomes."""

import json
from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.domain.decisions import ANSWER_MAX_CHARS, ARGUMENTS_MAX_BYTES, REASON_MAX_CHARS, Decision

# Which field goes with which decision.
_FIELD: Final = {"approve": "arguments", "deny": "reason", "answer": "text"}


class Decide(WireModel):
    """What a person decides on a call."""

    decision: Literal["approve", "deny", "answer"] = Field(
        description="approve or deny where an approval is required, answer or deny where input is"
    )
    arguments: dict[str, JsonValue] | None = Field(
        default=None, description="with approve: run the call with these arguments instead of the model's"
    )
    reason: str | None = Field(
        default=None, min_length=1, max_length=REASON_MAX_CHARS, description="with deny: why, as the model is told"
    )
    text: str | None = Field(
        default=None, min_length=1, max_length=ANSWER_MAX_CHARS, description="with answer: the answer itself"
    )


def parse_decide(body: dict[str, Any]) -> Decision:
    """The decision that a body gives.

    Raises:
        InvalidRequest: it does not hold; every wrong field is named.
    """
    form = parse_form(Decide, body)
    # Sorted, so that the same object sent again is the same decision.
    arguments = (
        None
        if form.arguments is None
        else json.dumps(form.arguments, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )
    wrong = list(_check(form, arguments))
    if wrong:
        raise invalid_fields(wrong)
    return Decision(decision=form.decision, arguments=arguments, reason=form.reason, text=form.text)


def _check(form: Decide, arguments: str | None) -> Iterator[tuple[str, str]]:
    for decision, field in _FIELD.items():
        if decision != form.decision and getattr(form, field) is not None:
            yield field, f"goes with {decision} only"
    if form.decision == "answer" and form.text is None:
        yield "text", "needed: the answer"
    if arguments is not None and len(arguments.encode()) > ARGUMENTS_MAX_BYTES:
        yield "arguments", f"at most {ARGUMENTS_MAX_BYTES} bytes of JSON"
