"""The body of `POST /runs/{run_id}/approvals/{call_id}`."""

import json
from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.domain.decisions import ANSWER_MAX_CHARS, ARGUMENTS_MAX_BYTES, REASON_MAX_CHARS, Decision

# The field that belongs to each decision.
_FIELD: Final = {"approve": "arguments", "deny": "reason", "answer": "text"}


class Decide(WireModel):
    """A person's decision on a call."""

    decision: Literal["approve", "deny", "answer"] = Field(
        description="approve or deny a call that needs approval; answer or deny a question"
    )
    arguments: dict[str, JsonValue] | None = Field(
        default=None, description="with approve: replaces the model's arguments"
    )
    reason: str | None = Field(
        default=None,
        min_length=1,
        max_length=REASON_MAX_CHARS,
        description="with deny: the reason, which the model sees",
    )
    text: str | None = Field(
        default=None, min_length=1, max_length=ANSWER_MAX_CHARS, description="with answer: the answer to the question"
    )


def parse_decide(body: dict[str, Any]) -> Decision:
    """Parses a request body.

    Raises:
        InvalidRequest: the error names every invalid field.
    """
    form = parse_form(Decide, body)
    # Sort the keys, so that an equal object in a repeated request is the same decision.
    arguments = (
        None
        if form.arguments is None
        else json.dumps(form.arguments, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )
    faults = list(_check(form, arguments))
    if faults:
        raise invalid_fields(faults)
    return Decision(decision=form.decision, arguments=arguments, reason=form.reason, text=form.text)


def _check(form: Decide, arguments: str | None) -> Iterator[tuple[str, str]]:
    for decision, field in _FIELD.items():
        if decision != form.decision and getattr(form, field) is not None:
            yield field, f"allowed with {decision} only"
    if form.decision == "answer" and form.text is None:
        yield "text", "required for answer"
    if arguments is not None and len(arguments.encode()) > ARGUMENTS_MAX_BYTES:
        yield "arguments", f"at most {ARGUMENTS_MAX_BYTES} bytes of JSON"
