"""The demo as a provider with Anthropic's Messages API; sans-IO.

A request becomes a chat completion request, and the reply to it a stream of typed events.
Spec: https://docs.anthropic.com/en/api/messages
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import orjson

from stagebus.worker.demo.demo_chat import WHOLE_TOKENS_MAX, call_ids, count_prompt, digest_of
from stagebus.worker.demo.demo_reply import DemoReply
from stagebus.worker.demo.demo_script import BadScript
from stagebus.worker.demo.demo_seal import SEAL_KEY, seal_of

Json = dict[str, Any]

ERROR: Final[Json] = {"type": "error", "error": {"type": "api_error", "message": "the demo was told to fail"}}
_STOP_REASONS: Final = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
_CHOICES: Final = {"any": "required"}


def to_chat(request: Mapping[str, Any]) -> Json:
    """Returns the request as a chat completion request.

    Raises:
        BadScript: it is no request to the Messages API.
    """
    turns = request.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadScript("messages must be a list of at least one object")
    if not isinstance(request.get("max_tokens"), int):
        raise BadScript("max_tokens: Field required")
    messages: list[Json] = []
    if system := _text(request.get("system")):
        messages.append({"role": "system", "content": system})
    for turn in turns:
        messages += _messages_of(turn)
    choice = request.get("tool_choice")
    choice = choice if isinstance(choice, dict) else {}
    kind = str(choice.get("type") or "auto")
    named = {"type": "function", "function": {"name": choice.get("name")}}
    tools = [tool for tool in request.get("tools") or [] if isinstance(tool, dict)]
    return {
        **{name: request.get(name) for name in ("model", "stream", "max_tokens")},
        "messages": messages,
        "tools": [
            {"type": "function", "function": {"name": tool.get("name"), "parameters": tool.get("input_schema")}}
            for tool in tools
        ],
        "tool_choice": named if kind == "tool" else _CHOICES.get(kind, kind),
        "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False),
    }


def _messages_of(turn: Json) -> Iterator[Json]:
    content = turn.get("content")
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    for block in blocks:
        if block.get("type") == "tool_result":
            result = _text(block.get("content"))
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
    message: Json = {"role": turn.get("role"), "content": _text(content)}
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": orjson.dumps(block.get("input")).decode()},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    if calls:
        message["tool_calls"] = calls
    if blocks and blocks[0].get("type") == "thinking":  # it has to be the first one
        message[SEAL_KEY] = blocks[0].get("signature")
    if message["content"] or calls:
        yield message


def _text(content: object) -> str:
    if isinstance(content, list):
        texts = [block for block in content if isinstance(block, dict) and block.get("type") == "text"]
        return "".join(str(block.get("text")) for block in texts)
    return content if isinstance(content, str) else ""


def stream_events(request: Mapping[str, Any], reply: DemoReply) -> Iterator[Json]:
    """Yields the events of the reply.

    Args:
        request: from `to_chat`.
    """
    yield {"type": "message_start", "message": _message(request, [], None, 0)}
    index, tokens = 0, 0
    if reply.reasoning:
        signature = {"type": "signature_delta", "signature": seal_of(request)}
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        yield from _block(index, opening, [{"type": "thinking_delta", "thinking": reply.reasoning}, signature])
        index += 1
    is_text_open = False
    for token in reply.tokens:
        if not is_text_open:
            is_text_open = True
            yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
            yield {"type": "ping"}
        tokens += 1
        yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": token}}
    if is_text_open:
        yield {"type": "content_block_stop", "index": index}
        index += 1
    for call_id, call in zip(call_ids(request), reply.calls, strict=False):
        block: Json = {"type": "tool_use", "id": f"toolu_{call_id}", "name": call.name, "input": {}}
        pieces = ["", *call.pieces()]
        tokens += len(pieces) - 1
        yield from _block(index, block, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces])
        index += 1
    reason = _STOP_REASONS[reply.finish_reason]
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": tokens},
    }
    yield {"type": "message_stop"}


def _block(index: int, block: Json, deltas: list[Json]) -> Iterator[Json]:
    yield {"type": "content_block_start", "index": index, "content_block": block}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def whole_message(request: Mapping[str, Any], reply: DemoReply) -> Json:
    """Returns the reply as one object."""
    tokens = list(islice(reply.tokens, WHOLE_TOKENS_MAX))
    content: list[Json] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": seal_of(request)})
    content += [{"type": "text", "text": "".join(tokens)}] if tokens else []
    content += [
        {"type": "tool_use", "id": f"toolu_{call_id}", "name": call.name, "input": orjson.loads(call.arguments)}
        for call_id, call in zip(call_ids(request), reply.calls, strict=False)
    ]
    return _message(request, content, _STOP_REASONS[reply.finish_reason], len(tokens))


def _message(request: Mapping[str, Any], content: list[Json], stop_reason: str | None, tokens: int) -> Json:
    usage = {
        "input_tokens": count_prompt(request),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": tokens,
    }
    return {
        "id": f"msg_{digest_of(request)}", "type": "message", "role": "assistant", "model": request["model"],
        "content": content, "stop_reason": stop_reason, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
