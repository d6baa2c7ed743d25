"""Reads the tools that an MCP server lists; sans-IO.

A tool that is not of the protocol's form is left out. The others are offered.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/server/tools#tool
"""

from typing import Annotated, Any, Final

import orjson
from mcp_types import Tool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagebus.worker.tools.mcp.mcp_tasks import plain_support
from stagebus.worker.tools.tool_results import DESCRIPTION_MAX_BYTES, cut

NAME_MAX_CHARS: Final = 256
# The names of further bad tools are not kept.
LEFT_OUT_MAX: Final = 500
_SHOWN_MAX_CHARS: Final = 64


class _Hints(BaseModel):
    model_config = ConfigDict(strict=True)

    title: str | None = None
    readOnlyHint: bool | None = None  # noqa: N815 - the protocol's name
    idempotentHint: bool | None = None  # noqa: N815 - the protocol's name


class _ListedTool(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]
    title: str | None = None
    description: str | None = None
    inputSchema: dict[str, Any]  # noqa: N815 - the protocol's name
    annotations: _Hints | None = None
    execution: Any = None


def plain_listing(result: dict[str, Any], left_out: dict[str, str], schema_max_bytes: int) -> dict[str, Any]:
    """Returns a `tools/list` result with the valid tools only, in a form that every version of the SDK accepts.

    Args:
        left_out: gets the name of each tool that is left out, and the reason.
        schema_max_bytes: limit of an input schema.
    """
    tools = result.get("tools")
    cursor = result.get("nextCursor")
    return {
        # Some servers write null for an empty list.
        **{name: value for name, value in result.items() if name != "nextCursor"},
        "tools": _valid_tools(tools, left_out, schema_max_bytes)
        if isinstance(tools, list)
        else []
        if tools is None
        else tools,
        **({"nextCursor": cursor} if isinstance(cursor, str) and cursor else {}),
    }


def _valid_tools(listed: list[Any], left_out: dict[str, str], schema_max_bytes: int) -> list[dict[str, Any]]:
    valid = []
    for tool in listed:
        try:
            valid.append(_plain_tool(tool, schema_max_bytes))
        except ValueError as exc:
            name = tool.get("name") if isinstance(tool, dict) else None
            if len(left_out) < LEFT_OUT_MAX:
                left_out[str(name)[:NAME_MAX_CHARS]] = _reason(exc)
    return valid


def _plain_tool(raw: Any, schema_max_bytes: int) -> dict[str, Any]:
    """Returns a tool without what Stagebus does not use.

    Its output schema is not used: a result that does not fit it is still the result.

    Raises:
        ValueError: the tool is not of the protocol's form, or too large.
    """
    tool = _ListedTool.model_validate(raw)
    schema = _object_schema(tool.inputSchema, schema_max_bytes)
    hints = tool.annotations.model_dump(exclude_none=True, exclude={"title"}) if tool.annotations else {}
    return {
        "name": tool.name,
        "description": cut(tool.description or tool.title or "", DESCRIPTION_MAX_BYTES),
        "inputSchema": schema,
        "annotations": hints,
        **plain_support(tool.execution),
    }


def _object_schema(schema: dict[str, Any], schema_max_bytes: int) -> dict[str, Any]:
    if "type" not in schema and not {"properties", "$ref", "allOf", "anyOf", "oneOf"} & schema.keys():
        raise ValueError("its input schema does not describe an object")
    if schema.get("type", "object") != "object":
        raise ValueError(f"its input schema is of type {str(schema['type'])[:_SHOWN_MAX_CHARS]}, not of type object")
    size = _size_of(schema)
    if size > schema_max_bytes:
        raise ValueError(
            f"its schema has {size} bytes, the limit is {schema_max_bytes} (STAGEBUS_TOOL_SCHEMA_MAX_BYTES)"
        )
    return {**schema, "type": "object"}


def _size_of(schema: dict[str, Any]) -> int:
    try:
        return len(orjson.dumps(schema))
    except TypeError:  # an integer beyond 64 bits, or levels without end
        return len(str(schema))


def _reason(exc: ValueError) -> str:
    if not isinstance(exc, ValidationError):
        return str(exc)
    first = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the tool"
    return f"{where}: {first['msg']}"


def is_idempotent(tool: Tool) -> bool:
    """Returns whether a call may run twice. Without a hint it may not: a crash must not book a second table."""
    hints = tool.annotations
    return bool(hints and (hints.read_only_hint or hints.idempotent_hint))
