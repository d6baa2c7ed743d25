"""The body of `POST /v1/responses` as a body of `POST /runs`.

Spec: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from stagebus.gateway.api.schemas.create_run import RunOptions
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.views.client_results import GivenResult
from stagebus.gateway.views.foreign_request import EVERY_TOOL, Json, parse_messages, reject
from stagebus.gateway.views.responses_fold import SERVER_LABEL
from stagebus.shared.domain.call_results import CallResult

# The names of fields in errors, by those of `POST /runs`.
FIELDS: Final = {
    "messages": "input", "max_tokens": "max_output_tokens", "thread_id": "conversation",
    "parent_run_id": "previous_response_id",
}  # fmt: skip
_UNSUPPORTED: Final = {
    "prompt": "prompt templates are not supported; send `instructions` and `input`",
}
# Items of earlier responses that say nothing to the model.
_DROPPED: Final = frozenset({"reasoning", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"})
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})


class CreateResponse(BaseModel):
    """A new response. Other fields of the Responses API are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, description="a model's name; the configured default if omitted")
    input: str | list[Json] = Field(
        description="the prompt, or the conversation: messages, and the calls and results of earlier responses"
    )
    instructions: str | None = Field(default=None, description="a system message before the input")
    previous_response_id: str | None = Field(
        default=None, description="the response that this one follows; `input` has only what is new"
    )
    conversation: str | Json | None = Field(
        default=None, description="the thread that this response continues: its id, or an object with it as `id`"
    )
    stream: bool | None = Field(default=None, description="answer with an event stream")
    background: bool | None = Field(default=None, description="answer at once, and read the response later")
    max_output_tokens: int | None = Field(default=None, description="limit for the answer of a stage")
    temperature: float | None = Field(default=None, description="randomness")
    top_p: float | None = Field(default=None, description="nucleus sampling")
    tools: list[Json] | None = Field(
        default=None,
        description='tools of Stagebus that the model may call; all if omitted: `{"type": "mcp", "server_label": '
        '"stagebus", "allowed_tools": [names]}` or `{"type": "function", "name"}`; and definitions of functions that the '
        "client runs",
    )
    tool_choice: str | Json | None = Field(default=None, description="`auto`, `none`, `required`, or a tool")
    parallel_tool_calls: bool | None = Field(default=None, description="whether one answer may call several tools")
    metadata: dict[str, str] | None = Field(default=None, description="key-value pairs, returned with the response")
    stagebus: RunOptions | None = Field(default=None, description="options of `POST /runs`; they win")


def as_run(body: Json) -> Json:
    """Returns the body as one of `POST /runs`; its object `stagebus` is not part of it.

    Raises:
        InvalidRequest: it cannot be.
    """
    reject(body, _UNSUPPORTED)
    _check_text(body.get("text"))
    return {
        "model": body.get("model"),
        "messages": _messages(body),
        "tools": _tools(body.get("tools")),
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "max_tokens": body.get("max_output_tokens"),
        **{name: body.get(name) for name in ("temperature", "top_p", "parallel_tool_calls", "metadata")},
    }


def trailing_results(given: Any) -> tuple[list[GivenResult], bool]:
    """Returns the results of calls at the end of an input, and whether the input has nothing else.

    Raises:
        InvalidRequest: one of them is no text.
    """
    items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    items = [item for item in items if item.get("type") not in _DROPPED]
    start = len(items)
    while start and items[start - 1].get("type") == "function_call_output":
        start -= 1
    results = [GivenResult(item.get("call_id"), _as_result(item.get("output"))) for item in items[start:]]
    return results, bool(results) and not start


def _as_result(output: Any) -> CallResult:
    parts = output if isinstance(output, list) else [{"type": "input_text", "text": output}]
    known = [part for part in parts if isinstance(part, dict) and part.get("type") in _TEXT_PARTS]
    texts = [text for part in known if isinstance(text := part.get("text"), str)]
    if len(texts) != len(parts):
        raise invalid_fields([("input", "the output of a function call must be text")])
    return CallResult(content="\n".join(texts))


def _check_text(text: Any) -> None:
    form = text.get("format") if isinstance(text, dict) else None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in (None, "text"):
        raise invalid_fields([("text.format", f"{str(kind)[:64]!r} is not supported; use text")])


def _messages(body: Json) -> list[Json]:
    given, instructions = body.get("input"), body.get("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid_fields([("input", "required: a text, or a list of items")])
    messages = list(_items(given))
    if instructions is not None:
        if not isinstance(instructions, str):
            raise invalid_fields([("instructions", "must be a text")])
        messages.insert(0, {"role": "system", "content": instructions})
    return parse_messages(messages, "input")


def _items(items: list[Any]) -> Iterator[Json]:
    """Yields the messages of input items. Consecutive calls become one message, as models expect them."""
    calls: list[Json] = []
    results: list[Json] = []
    for at, item in enumerate(items):
        if not isinstance(item, dict):
            raise invalid_fields([(f"input.{at}", "must be an object")])
        kind = str(item.get("type", "message"))
        if kind in _DROPPED:
            continue
        if kind in ("mcp_call", "function_call"):
            if results and kind == "function_call":
                yield from _exchange(calls, results)
                calls, results = [], []
            call, result = _call(item)
            calls.append(call)
            results += result
        elif kind == "function_call_output":
            results.append(_result(item.get("call_id"), item.get("output")))
        elif kind == "message":
            yield from _exchange(calls, results)
            calls, results = [], []
            if item.get("content") != []:  # of an item that a restart made void
                yield {**item, "content": _content(item.get("content"))}
        else:
            raise invalid_fields([(f"input.{at}", f"items of the type {kind[:64]!r} are not supported")])
    yield from _exchange(calls, results)


def _exchange(calls: list[Json], results: list[Json]) -> Iterator[Json]:
    if calls:
        yield {"role": "assistant", "content": None, "tool_calls": calls}
    yield from results


def _call(item: Mapping[str, Any]) -> tuple[Json, list[Json]]:
    """Returns a call, and the result that an `mcp_call` has in itself."""
    call_id = item.get("call_id") or item.get("id")
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": call_id, "type": "function", "function": function}
    if item.get("type") != "mcp_call":
        return call, []
    output = item.get("output")
    return call, [_result(call_id, _error_text(item.get("error")) if output is None else output)]


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        content = error.get("content")
        parts = content if isinstance(content, list) else []
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n".join(texts) or str(error.get("message") or "the call failed")
    return str(error or "the call has no result")


def _result(call_id: Any, output: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": _content(output)}


def _content(content: Any) -> Any:
    return [_part(part) for part in content] if isinstance(content, list) else content


def _part(part: Any) -> Any:
    """Returns a content part in the format of chat completions; others stay as they are and are rejected later."""
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        detail = part.get("detail")
        return {
            "type": "image_url",
            "image_url": {"url": part.get("image_url"), **({"detail": detail} if detail else {})},
        }
    return part


def _tools(tools: Any) -> list[str | Json] | None:
    """Returns names, `EVERY_TOOL`, and definitions in the format of chat completions."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise invalid_fields([("tools", "must be a list")])
    offered: list[str | Json] = []
    for at, tool in enumerate(tools):
        allowed = _allowed(tool)
        if allowed is None:
            fault = f"only functions, and the MCP server {SERVER_LABEL!r}, are supported"
            raise invalid_fields([(f"tools.{at}", fault)])
        offered += [one for one in allowed if one not in offered]
    is_every = EVERY_TOOL in offered and all(isinstance(one, str) for one in offered)
    return None if is_every else offered


def _allowed(tool: Any) -> Sequence[str | Json] | None:
    """Returns what an entry of `tools` offers; None if it is not supported."""
    match tool:
        case {"type": "function", "name": str(name)}:
            if tool.get("parameters") is None and tool.get("description") is None:
                return [name]
            function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if key in tool}
            return [{"type": "function", "function": function}]
        case {"type": "mcp", "server_label": "stagebus"}:
            allowed = tool.get("allowed_tools")
            if isinstance(allowed, dict):
                allowed = allowed.get("tool_names")
            if allowed is None:
                return [EVERY_TOOL]
            is_names = isinstance(allowed, list) and all(isinstance(name, str) for name in allowed)
            return list(allowed) if is_names else None
        case _:
            return None


def _tool_choice(choice: Any) -> Any:
    """Returns the choice as that of `POST /runs`: a word, or a tool's name."""
    match choice:
        case {"type": "function" | "mcp", "name": str(name)}:
            return name
        case {"type": "mcp", "server_label": "stagebus"}:
            return "required"
        case _:
            return choice
