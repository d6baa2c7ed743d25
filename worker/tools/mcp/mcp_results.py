"""Converts the tools and results of an MCP server; sans-IO.

Spec: https://modelcontextprotocol.io/specification/2025-11-25/server/tools
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
)

from stagebus.worker.tools.sources import DESCRIPTION_MAX_BYTES, SCHEMA_MAX_BYTES
from stagebus.worker.tools.tool_results import ToolReply, cut

logger = logging.getLogger(__name__)


def description_of(tool: Tool) -> str:
    """Returns the description of a tool for the model."""
    return cut(tool.description or tool.title or "", DESCRIPTION_MAX_BYTES)


def is_idempotent(tool: Tool) -> bool:
    """Returns whether a call may run twice. Without a hint it may not: a crash must not book a second table."""
    hints = tool.annotations
    return bool(hints and (hints.read_only_hint or hints.idempotent_hint))


def offerable_tools(server: str, tools: Iterable[Tool]) -> Iterator[Tool]:
    """Yields the tools that can be offered to a model, and logs the others."""
    for tool in tools:
        size = len(orjson.dumps(tool.input_schema))
        if size > SCHEMA_MAX_BYTES:
            logger.warning(
                "MCP server %s: tool %s is left out: its schema has %d bytes, the limit is %d",
                server, tool.name, size, SCHEMA_MAX_BYTES,
            )  # fmt: skip
        else:
            yield tool


def reply_of(result: CallToolResult) -> ToolReply:
    """Returns a result as text. Content that is not text is replaced by a description."""
    parts = [_text_of(block) for block in result.content]
    if result.structured_content is not None and not _repeats(result.content, result.structured_content):
        parts.append(orjson.dumps(result.structured_content).decode())
    return ToolReply("\n".join(parts), result.is_error)


def _repeats(content: Iterable[ContentBlock], structured: Any) -> bool:
    """Returns whether the text repeats the structured content, as the protocol recommends for older clients."""
    texts = [block.text for block in content if isinstance(block, TextContent)]
    if isinstance(structured, dict) and structured.keys() == {"result"}:
        return bool(texts)  # the SDK's servers wrap other values like this, and also send them as text
    return any(_is_json_of(text, structured) for text in texts)


def _is_json_of(text: str, value: Any) -> bool:
    try:
        return bool(orjson.loads(text) == value)
    except orjson.JSONDecodeError:
        return False


def _text_of(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case ImageContent() | AudioContent():
            return f"[{block.type}: {block.mime_type}, {_decoded_bytes(block.data)} bytes, not shown]"
        case ResourceLink():
            named = ", ".join(str(part) for part in (block.title, block.mime_type, block.description) if part)
            return f"[resource: {block.uri}{f' ({named})' if named else ''}]"
        case EmbeddedResource():
            resource = block.resource
            if isinstance(resource, TextResourceContents):
                return f"[resource: {resource.uri}]\n{resource.text}"
            kind = resource.mime_type or "binary"
            return f"[resource: {resource.uri}, {kind}, {_decoded_bytes(resource.blob)} bytes, not shown]"


def _decoded_bytes(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")
