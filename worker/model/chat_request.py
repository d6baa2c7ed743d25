"""Writes the body of a chat completion request for one provider; sans-IO.

The stages ask every model in the same form. What one provider needs differently (another name for a limit,
no usage option, call ids of nine letters, its own notes returned) is stated in the model's abilities and is
done here, once for each request.
Spec: https://platform.openai.com/docs/api-reference/chat/create
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from typing import Any, Final

from stagebus.shared.config.provider_schema import REASONING_DETAILS
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import ModelItems
from stagebus.worker.model.compat.call_arguments import as_object

Message = dict[str, Any]

# A field of assistant messages with a `MessageOrigin`. It is removed before a request is sent.
ORIGIN_KEY: Final = "stagebus_origin"

_TOOL_FIELDS: Final = ("tools", "tool_choice", "parallel_tool_calls")
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")
# OpenAI takes ids of up to 40 characters, Anthropic only these characters.
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
NAME_MAX_CHARS: Final = 64
_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{NAME_MAX_CHARS}}}")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class MessageOrigin:
    """The provider that wrote an assistant message, the reasoning that led to it, and the items of its own."""

    provider: str | None = None
    reasoning: str = ""
    reasoning_details: Sequence[Any] = ()
    items: ModelItems | None = None


def chat_request_body(fields: Mapping[str, Any], route: ModelRoute) -> dict[str, Any]:
    """Returns the body of a streaming request in the form that the route's provider accepts.

    Args:
        fields: OpenAI's fields; messages may have `ORIGIN_KEY`. Fields that are None are left out.
    """
    abilities = route.abilities
    body = {name: value for name, value in fields.items() if value is not None}
    body.pop("declared_tools", None)  # for languages whose prefix includes the tools
    body["model"] = route.model_id
    body["messages"] = list(adapt_messages(body["messages"], route))
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


def adapt_messages(messages: Iterable[Message], route: ModelRoute) -> Iterator[Message]:
    """Yields the messages, one for each, in the form that the provider accepts, and without their origin."""
    sent_id_by_id: dict[str, str] = {}
    for message in messages:
        origin = message.get(ORIGIN_KEY)
        calls = message.get("tool_calls")
        if not origin and not calls and "tool_call_id" not in message:
            yield message
            continue
        adapted = {name: value for name, value in message.items() if name != ORIGIN_KEY}
        is_own = origin is not None and origin.provider == route.provider
        if isinstance(calls, list):
            adapted["tool_calls"] = [_adapt_call(call, route, origin, is_own=is_own) for call in calls]
            sent_id_by_id |= dict(_sent_ids(calls, adapted["tool_calls"]))
            if origin is not None:
                adapted |= _reasoning(origin, route.abilities.reasoning_field, is_own=is_own)
        call_id = adapted.get("tool_call_id")
        if isinstance(call_id, str):
            adapted["tool_call_id"] = sent_id_by_id.get(call_id) or _adapt_call_id(call_id, route)
        yield adapted


def _sent_ids(calls: Sequence[Any], adapted: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for before, after in zip(calls, adapted, strict=True):
        if isinstance(before, dict) and isinstance(before.get("id"), str):
            yield before["id"], after["id"]


def _reasoning(origin: MessageOrigin, field: str | None, *, is_own: bool) -> dict[str, Any]:
    """Returns the field with the reasoning before the calls, if the provider needs it back."""
    if field == REASONING_DETAILS:
        return {field: origin.reasoning_details} if is_own and origin.reasoning_details else {}
    # Even if it is empty: DeepSeek rejects calls without the field.
    return {} if field is None else {field: origin.reasoning}


def _adapt_call(call: Any, route: ModelRoute, origin: MessageOrigin | None, *, is_own: bool) -> Any:
    """Makes a call acceptable: plain id and name, arguments that are an object, and no notes of another provider.

    The provider that made a call gets its own id back. The ids of a request's own messages stay as they are,
    since only the client knows where it has them from.
    """
    if not isinstance(call, dict):
        return call
    adapted = dict(call)
    if origin is not None and not is_own:
        adapted.pop("extra_content", None)
    if isinstance(call.get("id"), str):
        adapted["id"] = _adapt_call_id(call["id"], route, must_be_plain=origin is not None and not is_own)
    function = call.get("function")
    if isinstance(function, dict):
        adapted["function"] = {**function, **dict(_adapt_function(function))}
    return adapted


def _adapt_function(function: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(name, str) and not _NAME.fullmatch(name):
        yield "name", _NOT_IN_NAMES.sub("_", name)[:NAME_MAX_CHARS] or "unnamed"
    if isinstance(arguments, str):
        yield "arguments", as_object(arguments)


def _adapt_call_id(call_id: str, route: ModelRoute, *, must_be_plain: bool = False) -> str:
    """Returns the id, or a hash of it. The same id always gets the same hash, so call and result match."""
    if route.abilities.short_call_ids:
        return call_id if _SHORT_ID.fullmatch(call_id) else _hash(call_id, 5)[:9]
    must_be_plain = must_be_plain or route.api == "messages"
    return call_id if not must_be_plain or _PLAIN_ID.fullmatch(call_id) else f"call_{_hash(call_id, 12)}"


def _hash(call_id: str, size: int) -> str:
    return blake2s(call_id.encode(errors="replace"), digest_size=size).hexdigest()
