"""The demo as a provider with the Responses API; sans-IO.

A request becomes a chat completion request, and the reply to it a stream of typed events.
Spec: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any, Final

from stagebus.worker.demo.demo_chat import WHOLE_TOKENS_MAX, call_ids, count_prompt, digest_of
from stagebus.worker.demo.demo_reply import DemoReply
from stagebus.worker.demo.demo_script import BadScript
from stagebus.worker.demo.demo_seal import SEAL_KEY, seal_of

Json = dict[str, Any]

ERROR: Final[Json] = {
    "type": "error",
    "error": {"type": "server_error", "code": "server_error", "message": "the demo was told to fail", "param": None},
}


def to_chat(request: Mapping[str, Any]) -> Json:
    """Returns the request as a chat completion request.

    Raises:
        BadScript: it is no request to the Responses API.
    """
    items = request.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise BadScript("input must be a text or a list of at least one object")
    instructions = request.get("instructions")
    messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        _add_item(messages, item)
    tools = [{"type": "function", "function": tool} for tool in request.get("tools") or [] if isinstance(tool, dict)]
    choice = request.get("tool_choice")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {
        **{name: request.get(name) for name in ("model", "stream", "parallel_tool_calls")},
        "messages": messages,
        "tools": tools,
        "tool_choice": choice,
        "max_tokens": request.get("max_output_tokens"),
    }


def _add_item(messages: list[Json], item: Json) -> None:
    """Adds an item to the conversation. The items of one answer become one message."""
    kind = item.get("type")
    if kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": _text(item.get("output"))})
        return
    role = item.get("role") or "assistant"
    if role != "assistant" or not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": role, "content": ""})
    message = messages[-1]
    if kind == "reasoning":
        message[SEAL_KEY] = item.get("encrypted_content")
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        message["tool_calls"] = [*message.get("tool_calls", []), call]
    else:
        message["content"] += _text(item.get("content"))


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def stream_events(request: Mapping[str, Any], reply: DemoReply) -> Iterator[Json]:
    """Yields the events of the reply.

    Args:
        request: from `to_chat`.
    """
    numbers = count()
    for event in _events(request, reply):
        yield {**event, "sequence_number": next(numbers)}


def _events(request: Mapping[str, Any], reply: DemoReply) -> Iterator[Json]:
    head = _response(request, "in_progress", [])
    yield {"type": "response.created", "response": head}
    yield {"type": "response.in_progress", "response": head}
    items: list[Json] = []
    tokens = 0
    if reply.reasoning:
        yield from _reasoning_events(request, reply, items)
    place: Json = {"output_index": len(items), "content_index": 0}
    text = ""
    for token in reply.tokens:
        if not text:
            yield {
                "type": "response.output_item.added",
                "output_index": len(items),
                "item": _message("", "in_progress"),
            }
            yield {"type": "response.content_part.added", **place, "part": _part("")}
        text, tokens = text + token, tokens + 1
        yield {"type": "response.output_text.delta", **place, "delta": token, "logprobs": []}
    if text:
        message = _message(text, "incomplete" if reply.finish_reason == "length" else "completed")
        yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": _part(text)}
        yield {"type": "response.output_item.done", "output_index": len(items), "item": message}
        items.append(message)
    for call_id, call in zip(call_ids(request), reply.calls, strict=False):
        place = {"output_index": len(items)}
        item: Json = {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": call.name}
        yield {
            "type": "response.output_item.added",
            **place,
            "item": {**item, "arguments": "", "status": "in_progress"},
        }
        for piece in call.pieces():
            tokens += 1
            yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
        items.append({**item, "arguments": call.arguments, "status": "completed"})
        yield {"type": "response.function_call_arguments.done", **place, "arguments": call.arguments}
        yield {"type": "response.output_item.done", **place, "item": items[-1]}
    status = "incomplete" if reply.finish_reason == "length" else "completed"
    yield {"type": f"response.{status}", "response": _response(request, status, items, tokens)}


def _reasoning_events(request: Mapping[str, Any], reply: DemoReply, items: list[Json]) -> Iterator[Json]:
    item: Json = {"type": "reasoning", "id": f"rs_{digest_of(request)}", "summary": []}
    place: Json = {"output_index": 0, "summary_index": 0}
    yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "encrypted_content": "incomplete"}}
    yield {"type": "response.reasoning_summary_part.added", **place, "part": {"type": "summary_text", "text": ""}}
    yield {"type": "response.reasoning_summary_text.delta", **place, "delta": reply.reasoning}
    yield {"type": "response.reasoning_summary_text.done", **place, "text": reply.reasoning}
    item["summary"] = [{"type": "summary_text", "text": reply.reasoning}]
    items.append({**item, "encrypted_content": seal_of(request)})
    yield {"type": "response.output_item.done", "output_index": 0, "item": items[0]}


def whole_response(request: Mapping[str, Any], reply: DemoReply) -> Json:
    """Returns the reply as one object."""
    events = islice(_events(request, reply), WHOLE_TOKENS_MAX)
    response: Json = [event for event in events if "response" in event][-1]["response"]
    return response


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _message(text: str, status: str) -> Json:
    content = [_part(text)] if text else []
    return {"type": "message", "id": "msg_demo", "role": "assistant", "status": status, "content": content}


def _response(request: Mapping[str, Any], status: str, items: list[Json], tokens: int | None = None) -> Json:
    usage = None
    if tokens is not None:
        prompt_tokens = count_prompt(request)
        usage = {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + tokens,
        }
    return {
        "id": f"resp_{digest_of(request)}", "object": "response", "created_at": 0, "model": request["model"],
        "status": status, "error": None, "output": list(items), "usage": usage, "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [],
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
    }  # fmt: skip
