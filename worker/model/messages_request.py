"""Writes the body of a request to Anthropic's Messages API; sans-IO.

    messages                       body
    system, developer              system: text blocks
    user                           {"role": "user", "content": blocks}
    an assistant's tool_calls      {"type": "tool_use", "id", "name", "input"} blocks of the assistant's message
    tool                           {"type": "tool_result", "tool_use_id", "content"} blocks of the user's next message

Messages of one role in a row become one, and results come before text in it. Up to four marks say what to cache: the
tools, the system text, and the last two messages of the user, so that the next request finds what this one wrote.
Spec: https://docs.anthropic.com/en/api/messages
Spec: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.errors import ModelRejected
from stagebus.worker.model.items_back import (
    Json,
    Turn,
    functions_of,
    merge_bodies,
    parts_of,
    place_calls,
    text_of_content,
    turns_of,
)

TOOL_USE: Final = "tool_use"
TOOL_RESULT: Final = "tool_result"
CACHE_MARK: Final = {"type": "ephemeral"}
# How many of the user's messages are marked. With the tools and the system text that is the API's limit, four.
_MARKED_MESSAGES: Final = 2
_INSTRUCTION_ROLES: Final = ("system", "developer")
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=-]+)*;base64,", re.ASCII)
_PDF: Final = "application/pdf"
_CHOICES: Final = {"auto": "auto", "required": "any", "none": "none"}
# The name of each parameter that the API has under another or the same one.
_PARAMETERS: Final[Mapping[str, str]] = {"temperature": "temperature", "top_p": "top_p"}


def messages_request_body(fields: Mapping[str, Any], route: ModelRoute) -> Json:
    """Returns the body of a streaming request.

    Args:
        fields: a chat completion's fields; messages may have `ORIGIN_KEY`. Fields that are None are left out.

    Raises:
        ModelRejected: a message has a part that the API does not know, such as audio.
    """
    turns = turns_of(fields["messages"], route, "messages")
    system = [
        {"type": "text", "text": text}
        for turn in turns
        if turn.message["role"] in _INSTRUCTION_ROLES and (text := text_of_content(turn.message.get("content")))
    ]
    body: Json = {
        "model": route.model_id,
        "max_tokens": fields.get("max_tokens") or route.abilities.max_tokens_default,
        "messages": _merge_roles(turns),
        "stream": True,
    }
    if system:
        body["system"] = system
    body |= _tool_fields(fields, route) or _called_tools(body["messages"])
    body |= _parameters(fields)
    if route.abilities.caching is not False:
        _mark_for_cache(body)
    for name in route.abilities.leave_out:
        body.pop(name, None)
    return merge_bodies(route.extra_body, body)


def _parameters(fields: Mapping[str, Any]) -> Json:
    """Returns the run's parameters. Those that the API does not have are not sent."""
    found: Json = {name: fields[ours] for ours, name in _PARAMETERS.items() if fields.get(ours) is not None}
    if (stop := fields.get("stop")) is not None:
        found["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    output: Json = {}
    if (effort := fields.get("reasoning_effort")) not in (None, "none"):
        output["effort"] = "low" if effort == "minimal" else effort
    answer_format = fields.get("response_format") or {}
    if answer_format.get("type") == "json_schema":
        output["format"] = {"type": "json_schema", "schema": answer_format["json_schema"]["schema"]}
    return found | ({"output_config": output} if output else {})


def _tool_fields(fields: Mapping[str, Any], route: ModelRoute) -> Json:
    functions, choice = functions_of(fields, route.abilities)
    if not functions:
        return {}
    chosen: Json | None = None
    if isinstance(choice, dict):
        chosen = {"type": "tool", "name": choice["function"]["name"]}
    elif choice is not None:
        chosen = {"type": _CHOICES.get(choice, choice)}
    if fields.get("parallel_tool_calls") is False and (chosen is None or chosen["type"] != "none"):
        chosen = {"type": "auto", **(chosen or {}), "disable_parallel_tool_use": True}
    found: Json = {"tools": [_tool(function) for function in functions]}
    return found if chosen is None else found | {"tool_choice": chosen}


def _called_tools(messages: Sequence[Json]) -> Json:
    """Returns a declaration of the tools that the conversation called: the API refuses calls of tools without one."""
    blocks = [block for message in messages for block in message["content"]]
    names = dict.fromkeys(block["name"] for block in blocks if block["type"] == TOOL_USE)
    if not names:
        return {}
    return {"tools": [_tool({"name": name}) for name in names], "tool_choice": {"type": "none"}}


def _tool(function: Json) -> Json:
    tool = {name: function[name] for name in ("name", "description", "strict") if function.get(name)}
    return tool | {"input_schema": {"type": "object", **(function.get("parameters") or {})}}


def _merge_roles(turns: Sequence[Turn]) -> list[Json]:
    """Returns the conversation, in which user and assistant alternate."""
    merged: list[Json] = []
    for turn in turns:
        role = turn.message["role"]
        if role in _INSTRUCTION_ROLES:
            continue
        role = "assistant" if role == "assistant" else "user"
        blocks = list(_blocks(turn))
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += blocks
        elif blocks:
            merged.append({"role": role, "content": blocks})
    for message in merged:
        # The API wants the results first.
        message["content"].sort(key=lambda block: message["role"] == "user" and block["type"] != TOOL_RESULT)
    return merged


def _blocks(turn: Turn) -> Iterator[Json]:
    message = turn.message
    content = message.get("content")
    if message["role"] == "tool":
        # Text is sent as it is, since a list would be other bytes for the cache.
        result = content if isinstance(content, str) else list(_parts(content))
        yield {"type": TOOL_RESULT, "tool_use_id": message["tool_call_id"]} | ({"content": result} if result else {})
        return
    calls = [_tool_use(call) for call in message.get("tool_calls") or []]
    if turn.items:
        yield from place_calls(turn.items, TOOL_USE, calls)
        return
    yield from _parts(content)
    if message.get("refusal"):
        yield {"type": "text", "text": message["refusal"]}
    yield from calls


def _tool_use(call: Json) -> Json:
    function = call["function"]
    # `adapt_messages` made the arguments an object.
    return {"type": TOOL_USE, "id": call["id"], "name": function["name"], "input": orjson.loads(function["arguments"])}


def _parts(content: object) -> Iterator[Json]:
    for part in parts_of(content):
        match part.get("type"):
            case "text":
                if part["text"]:  # empty text is refused
                    yield {"type": "text", "text": part["text"]}
            case "refusal":
                yield {"type": "text", "text": part["refusal"]}
            case "image_url":
                yield {"type": "image", "source": _source(part["image_url"]["url"])}
            case "file":
                yield _document(part["file"])
            case kind:
                raise ModelRejected(f"the API of the model's provider has no content of the type {kind!r}")


def _source(url: str) -> Json:
    """Returns the source of an image by its URL, which may hold the image itself."""
    if match := _DATA_URL.match(url):
        return {"type": "base64", "media_type": match[1], "data": url[match.end() :]}
    return {"type": "url", "url": url}


def _document(file: Json) -> Json:
    if file.get("file_id"):
        return {"type": "document", "source": {"type": "file", "file_id": file["file_id"]}}
    data = str(file.get("file_data") or "")
    source = _source(data) if data.startswith("data:") else {"type": "base64", "media_type": _PDF, "data": data}
    return {"type": "document", "source": source} | ({"title": file["filename"]} if file.get("filename") else {})


def _mark_for_cache(body: Json) -> None:
    """Marks the end of the tools, of the system text, and of the user's last messages."""
    for name in ("tools", "system"):
        if body.get(name):
            body[name][-1] = {**body[name][-1], "cache_control": CACHE_MARK}
    users = [message for message in body["messages"] if message["role"] == "user"]
    for message in users[-_MARKED_MESSAGES:]:
        message["content"][-1] = {**message["content"][-1], "cache_control": CACHE_MARK}
