"""Writes the body of a chat completion request for one provider; sans-IO.

The stages ask every model in the same form. What one provider needs differently (another name for a limit,
no usage option, call ids of nine letters, its own notes returned) is stated in the model's abilities and is
done here, once for each request.
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

# A field of assistant messages with a `MessageOrigin`. It is removed before a request is sent.
ORIGIN_KEY: Final = "stagebus_origin"

_TOOL_FIELDS: Final = ("tools", "tool_choice", "parallel_tool_calls")
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class MessageOrigin:
    """The provider that wrote an assistant message, and the reasoning that led to it."""

    provider: str | None = None
    reasoning: str = ""
    reasoning_details: Sequence[Any] = ()


def chat_request_body(fields: Mapping[str, Any], route: ModelRoute) -> dict[str, Any]:
    """Returns the body of a streaming request in the form that the route's provider accepts.

    Args:
        fields: OpenAI's fields; messages may have `ORIGIN_KEY`. Fields that are None are left out.
    """
    abilities = route.abilities
    body = {name: value for name, value in fields.items() if value is not None}
    body["model"] = route.model_id
    body["messages"] = [_adapt_message(message, route) for message in body["messages"]]
    if not body.get("tools") or abilities.tools != "native":
        # Providers reject the other tool fields in a request without tools.
        for name in _TOOL_FIELDS:
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
    # The run's own fields take precedence over the operator's extra fields.
    return {**route.extra_body, **body}


def _adapt_message(message: Message, route: ModelRoute) -> Message:
    origin = message.get(ORIGIN_KEY)
    if origin is None and not route.abilities.short_call_ids:
        return message
    adapted = {name: value for name, value in message.items() if name != ORIGIN_KEY}
    if "tool_calls" in adapted:
        is_own = origin is not None and origin.provider == route.provider
        adapted["tool_calls"] = [_adapt_call(call, route.abilities, is_own=is_own) for call in adapted["tool_calls"]]
        field = route.abilities.reasoning_field
        if origin is not None and field == REASONING_DETAILS:
            if is_own and origin.reasoning_details:
                adapted[field] = origin.reasoning_details
        elif origin is not None and field is not None:
            # Even if it is empty: DeepSeek rejects calls without the field.
            adapted[field] = origin.reasoning
    if "tool_call_id" in adapted:
        adapted["tool_call_id"] = _adapt_call_id(adapted["tool_call_id"], route.abilities)
    return adapted


def _adapt_call(call: dict[str, Any], abilities: Abilities, *, is_own: bool) -> dict[str, Any]:
    """Adapts the id, and removes `extra_content` unless this provider wrote it."""
    kept = call if is_own else {name: value for name, value in call.items() if name != "extra_content"}
    return {**kept, "id": _adapt_call_id(call["id"], abilities)}


def _adapt_call_id(call_id: str, abilities: Abilities) -> str:
    """Returns the id, or a short hash of it. The same id always gets the same hash, so call and result match."""
    if not abilities.short_call_ids or _SHORT_ID.fullmatch(call_id):
        return call_id
    return blake2s(call_id.encode(), digest_size=5).hexdigest()[:9]
