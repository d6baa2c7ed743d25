"""The parts of a request that the writers of the Responses and the Messages API share; sans-IO."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2s
from typing import Any, NamedTuple

import orjson

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import Api
from stagebus.worker.model.chat_request import ORIGIN_KEY, Message, adapt_messages

Json = dict[str, Any]


class Turn(NamedTuple):
    """A message as the provider accepts it, and the items of its answer if the model wrote them itself."""

    message: Message
    items: list[Json]


def turns_of(messages: Sequence[Message], route: ModelRoute, api: Api) -> list[Turn]:
    """Returns the messages as turns.

    The items of another provider, model or API are left out: no other model understands them.
    """
    return [
        Turn(adapted, _own_items(message, route, api))
        for message, adapted in zip(messages, adapt_messages(messages, route), strict=True)
    ]


def _own_items(message: Message, route: ModelRoute, api: Api) -> list[Json]:
    origin = message.get(ORIGIN_KEY)
    items = None if origin is None else origin.items
    if items is None or (items.api, items.provider, items.model) != (api, route.provider, route.model_id):
        return []
    return list(items.items)


def has_items(fields: Mapping[str, Any]) -> bool:
    """Returns whether a message of the request has items of its model."""
    return any((origin := message.get(ORIGIN_KEY)) is not None and origin.items for message in fields["messages"])


def without_items(fields: Mapping[str, Any]) -> Json:
    """Returns the request without the items: it then has the text and the calls, which every model accepts."""
    messages = [
        {**message, ORIGIN_KEY: replace(message[ORIGIN_KEY], items=None)} if ORIGIN_KEY in message else message
        for message in fields["messages"]
    ]
    return {**fields, "messages": messages}


def place_calls(items: Sequence[Json], call_type: str, calls: Sequence[Json]) -> list[Json]:
    """Returns the items with each marked call replaced by the call that is to go back.

    If an approval or a repair left another number of calls than the model made, the calls follow the other items.
    """
    marks = [item for item in items if item.get("type") == call_type]
    if len(marks) != len(calls):
        return [*(item for item in items if item.get("type") != call_type), *calls]
    placed = iter(calls)
    return [item | next(placed) if item.get("type") == call_type else item for item in items]


def text_of_content(content: object) -> str:
    """Returns the text of a message's content, which is text or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def parts_of(content: object) -> list[Json]:
    """Returns a message's content as parts."""
    if isinstance(content, list):
        return [part for part in content if isinstance(part, dict)]
    return [{"type": "text", "text": content}] if isinstance(content, str) and content else []


def functions_of(fields: Mapping[str, Any], abilities: Abilities) -> tuple[list[Json], Any]:
    """Returns the functions to declare, and the choice among them.

    The tools are the beginning of what a provider caches. A stage that offers none declares those of the other stages
    and forbids their use, so that the conversation's beginning stays the same; not for a provider without a cache.
    """
    if abilities.tools != "native":
        return [], None
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if not tools and fields.get("declared_tools") and abilities.caching is not False:
        tools, choice = fields["declared_tools"], "none"
    return [tool["function"] for tool in tools or []], choice


def merge_bodies(extra: Mapping[str, Any], body: Mapping[str, Any]) -> Json:
    """Returns the body with the operator's extra fields. The run's own fields take precedence, also inside of objects."""
    merged = {**extra, **body}
    for name in extra.keys() & body.keys():
        if isinstance(extra[name], dict) and isinstance(body[name], dict):
            merged[name] = merge_bodies(extra[name], body[name])
    return merged


def conversation_key(*beginning: Any) -> str:
    """Returns a key that all requests with the same beginning share, and that tells nothing about it."""
    return blake2s(orjson.dumps(beginning), digest_size=16).hexdigest()
