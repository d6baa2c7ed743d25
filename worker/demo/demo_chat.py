"""Writes the demo's replies as chat completions, streamed and whole; sans-IO.

    {"choices": [{"index": 0, "delta": {"content": " Paris"}, "finish_reason": null}], …}

Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2s
from itertools import count, islice
from typing import Any, Final

import orjson

from stagebus.worker.demo.demo_reply import DemoCall, DemoReply

# The limit for a whole answer, since the script may be endless.
WHOLE_TOKENS_MAX: Final = 10_000


def stream_chunks(request: Mapping[str, Any], reply: DemoReply) -> Iterator[dict[str, Any]]:
    """Yields the reply as the chunks of a stream, with the usage last if the request asks for it."""
    options = request.get("stream_options")
    with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    head = _head(request, "chat.completion.chunk") | ({"usage": None} if with_usage else {})
    deltas = count()
    for delta in _deltas(request, reply):
        next(deltas)
        yield head | {"choices": [_choice("delta", delta)]}
    yield head | {"choices": [_choice("delta", {}, reply.finish_reason)]}
    if with_usage:
        # The first delta contains no token.
        yield head | {"choices": [], "usage": _usage(request, next(deltas) - 1)}


def whole_completion(request: Mapping[str, Any], reply: DemoReply) -> dict[str, Any]:
    """Returns the reply as one object."""
    tokens = list(islice(reply.tokens, WHOLE_TOKENS_MAX))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(tokens)}
    if reply.calls:
        message["tool_calls"] = [
            _call(call_id, call, call.arguments) for call_id, call in zip(call_ids(request), reply.calls, strict=False)
        ]
    return _head(request, "chat.completion") | {
        "choices": [_choice("message", message, reply.finish_reason)],
        "usage": _usage(request, len(tokens) + sum(len(list(call.pieces())) for call in reply.calls)),
    }


def _deltas(request: Mapping[str, Any], reply: DemoReply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    if reply.reasoning:
        yield {"reasoning_content": reply.reasoning}
    for token in reply.tokens:
        yield {"content": token}
    for index, (call_id, call) in enumerate(zip(call_ids(request), reply.calls, strict=False)):
        yield {"tool_calls": [{"index": index} | _call(call_id, call, "")]}
        for piece in call.pieces():
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _call(call_id: str, call: DemoCall, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _choice(kind: str, content: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, kind: content, "logprobs": None, "finish_reason": finish_reason}


def _head(request: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{digest_of(request)}", "object": kind, "created": 0, "model": request["model"]}


def call_ids(request: Mapping[str, Any]) -> Iterator[str]:
    """Returns an iterator of call ids, which depend only on the conversation."""
    digest = digest_of(request)
    return (f"call_{digest}{number}" for number in count())


def digest_of(request: Mapping[str, Any]) -> str:
    """Returns a text that depends only on the model and the conversation."""
    return blake2s(orjson.dumps([request["model"], request["messages"]]), digest_size=6).hexdigest()


def count_prompt(request: Mapping[str, Any]) -> int:
    """Returns the tokens of the conversation, where each word counts as one."""
    return sum(len(str(message.get("content") or "").split()) for message in request["messages"])


def _usage(request: Mapping[str, Any], completion_tokens: int) -> dict[str, int]:
    prompt_tokens = count_prompt(request)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
