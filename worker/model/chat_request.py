"""A request in the words of the provider that gets it; sans-IO.

Stages ask every model alike. What one provider wants otherwise (another name for a limit, no
word of usage, ids of nine letters, its own notes back) stands in the model's abilities and is
done here, once a request.
Spec: https://platform.openai.com/docs/api-reference/chat/create
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from typing import Any, Final

from stagebus.shared.config.provider_schema import REASONING_DETAILS, Abilities
from stagebus.shared.config.providers import ModelRoute

Message = dict[str, Any]

# Notes on an assistant's message, for this module alone: they are never sent.
ORIGIN_KEY: Final = "stagebus_origin"

_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class MessageOrigin:
    """Who wrote an assistant's message, and the reasoning that led to it."""

    provider: str | None = None
    reasoning: str = ""
    reasoning_details: Sequence[Any] = ()


def chat_request_body(fields: Mapping[str, Any], route: ModelRoute) -> dict[str, Any]:
    """The fields of a chat completion request as the route's provider takes them.

    Args:
        fields: OpenAI's own, the messages' `ORIGIN_KEY` notes among them; None is left to the provider.
    """
    abilities = route.abilities
    body = {name: value for name, value in fields.items() if value is not None}
    body["model"] = route.model_id
    body["messages"] = [_message(message, route) for message in body["messages"]]
    if not body.get("tools") or abilities.tools != "native":
        # Without tools, what speaks of tools is rejected.
        for name in _OF_TOOLS:
            body.pop(name, None)
    if not abilities.parallel_tool_calls:
        body.pop("parallel_tool_calls", None)
    if "max_tokens" in body:
        body[abilities.max_tokens_parameter] = body.pop("max_tokens")
    body["stream"] = True
    if abilities.stream_options:
        body["stream_options"] = {"include_usage": True}
    for name in abilities.leave_out:
        body.pop(name, None)
    # What the run says comes before what the operator says of all runs.
    return {**route.extra_body, **body}


def _message(message: Message, route: ModelRoute) -> Message:
    origin = message.get(ORIGIN_KEY)
    if origin is None and not route.abilities.short_call_ids:
        return message
    adapted = {name: value for name, value in message.items() if name != ORIGIN_KEY}
    if "tool_calls" in adapted:
        is_own = origin is not None and origin.provider == route.provider
        adapted["tool_calls"] = [_call(call, route.abilities, is_own=is_own) for call in adapted["tool_calls"]]
        field = route.abilities.reasoning_field
        if origin is not None and field == REASONING_DETAILS:
            if is_own and origin.reasoning_details:
                adapted[field] = origin.reasoning_details
        elif origin is not None and field is not None:
            # Even an empty one: DeepSeek rejects calls without the field.
            adapted[field] = origin.reasoning
    if "tool_call_id" in adapted:
        adapted["tool_call_id"] = _call_id(adapted["tool_call_id"], route.abilities)
    return adapted


def _call(call: dict[str, Any], abilities: Abilities, *, is_own: bool) -> dict[str, Any]:
    """A call; the notes that a provider put beside it go back to nobody else."""
    kept = call if is_own else {name: value for name, value in call.items() if name != "extra_content"}
    return {**kept, "id": _call_id(call["id"], abilities)}


def _call_id(call_id: str, abilities: Abilities) -> str:
    """The id, or one in its place that is the same wherever it stands."""
    if not abilities.short_call_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return blake2s(call_id.encode(), digest_size=5).hexdigest()[:9]
