"""Converts the result of a call at an MCP server to text for the model; sans-IO.

It takes what a server sent, valid or not: a block of an unknown type is passed on as JSON, and a result that does not fit
the tool's output schema is passed on as it is.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/server/tools#tool-result
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from mcp_types import CallToolResult, TextContent
from pydantic_core import to_json

from stagebus.worker.tools.mcp.mcp_tasks import created_task, plain_created_task
from stagebus.worker.tools.tool_results import ToolReply

# Newer protocol versions have results of other kinds; those are left to the SDK.
_OTHER_KINDS: Final = frozenset({"input_required"})
NO_TEXT: Final = "The tool reported an error without a text."


def plain_result(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of a `tools/call` with its content as a single text, which every version of the SDK accepts.

    Of a call that has become a task, `mcp_tasks.task_of` reads it from the result.
    """
    if result.get("resultType") in _OTHER_KINDS:
        return result
    if (task := created_task(result)) is not None:
        return plain_created_task(task)
    known = {name: result[name] for name in ("resultType",) if name in result}
    return {**known, "content": [{"type": "text", "text": _text_of(result)}], "isError": _is_error(result)}


def reply_of(result: CallToolResult) -> ToolReply:
    """Returns a result that `plain_result` made as a reply."""
    text = "".join(block.text for block in result.content if isinstance(block, TextContent))
    return _reply(text, is_error=bool(result.is_error))


def raw_reply_of(result: Mapping[str, Any]) -> ToolReply:
    """Returns the result of a call as the server sent it as a reply."""
    return _reply(_text_of(result), is_error=_is_error(result))


def _reply(text: str, *, is_error: bool) -> ToolReply:
    return ToolReply(text or NO_TEXT if is_error else text, is_error)


def _is_error(result: Mapping[str, Any]) -> bool:
    return result.get("isError") in (True, "true")


def _text_of(result: Mapping[str, Any]) -> str:
    content = result.get("content")
    blocks = content if isinstance(content, list) else [] if content is None else [content]
    parts = [_block_text(block) for block in blocks]
    structured = result.get("structuredContent")
    if structured is not None and not _repeats(blocks, structured):
        parts.append(_to_json(structured))
    return "\n".join(parts)


def _repeats(blocks: Iterable[Any], structured: Any) -> bool:
    """Returns whether the text repeats the structured content, as the protocol recommends for older clients."""
    texts = [text for block in blocks if isinstance(block, dict) and isinstance(text := block.get("text"), str)]
    if isinstance(structured, dict) and structured.keys() == {"result"}:
        return bool(texts)  # the SDK's servers wrap other values like this, and also send them as text
    return any(_is_json_of(text, structured) for text in texts)


def _is_json_of(text: str, value: Any) -> bool:
    try:
        return bool(orjson.loads(text) == value)
    except orjson.JSONDecodeError:
        return False


def _block_text(block: Any) -> str:
    """Returns a block as text. A block that is not of the form of its type is returned as JSON."""
    match block:
        case str(text) | {"type": "text", "text": str(text)}:
            return text
        case {"type": "image" | "audio" as kind, "data": str(data)}:
            return f"[{kind}: {block.get('mimeType') or 'unknown type'}, {_decoded_bytes(data)} bytes, not shown]"
        case {"type": "resource_link", "uri": str(uri)}:
            named = ", ".join(str(part) for key in ("title", "mimeType", "description") if (part := block.get(key)))
            return f"[resource: {uri}{f' ({named})' if named else ''}]"
        case {"type": "resource", "resource": {"text": str(text)} as resource}:
            return f"[resource: {resource.get('uri', 'unnamed')}]\n{text}"
        case {"type": "resource", "resource": {"blob": str(blob)} as resource}:
            kind = resource.get("mimeType") or "binary"
            return f"[resource: {resource.get('uri', 'unnamed')}, {kind}, {_decoded_bytes(blob)} bytes, not shown]"
    return _to_json(block)


def _to_json(value: Any) -> str:
    return to_json(value, inf_nan_mode="null").decode()


def _decoded_bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")
