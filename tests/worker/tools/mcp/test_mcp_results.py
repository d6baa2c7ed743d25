import pytest
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)

from stagebus.worker.tools.mcp.mcp_results import description_of, is_idempotent, offerable_tools, reply_of
from stagebus.worker.tools.sources import DESCRIPTION_MAX_BYTES, SCHEMA_MAX_BYTES


def text(words: str) -> TextContent:
    return TextContent(text=words)


@pytest.mark.parametrize(
    ("content", "structured", "told"),
    [
        ([text("a"), text("b")], None, "a\nb"),
        ([], None, ""),
        ([], {"a": 1}, '{"a":1}'),
        ([text('{ "a": 1 }')], {"a": 1}, '{ "a": 1 }'),
        ([text("one found")], {"a": 1}, 'one found\n{"a":1}'),
        ([text("5")], {"result": 5}, "5"),
        ([], {"result": []}, '{"result":[]}'),
        ([AudioContent(data="aGVsbG8=", mime_type="audio/wav")], None, "[audio: audio/wav, 5 bytes, not shown]"),
        (
            [EmbeddedResource(resource=TextResourceContents(uri="file:///a", text="hello"))],
            None,
            "[resource: file:///a]\nhello",
        ),
        (
            [EmbeddedResource(resource=BlobResourceContents(uri="file:///b", blob="AAAA"))],
            None,
            "[resource: file:///b, binary, 3 bytes, not shown]",
        ),
    ],
)
def test_mcp_result_is_text(content, structured, told):
    assert reply_of(CallToolResult(content=content, structured_content=structured)).content == told


def test_error_stays_one():
    assert reply_of(CallToolResult(content=[text("no")], is_error=True)) == ("no", True)


@pytest.mark.parametrize(
    ("hints", "may_run_twice"),
    [
        (None, False),
        (ToolAnnotations(), False),
        (ToolAnnotations(read_only_hint=True), True),
        (ToolAnnotations(idempotent_hint=True, destructive_hint=True), True),
        (ToolAnnotations(read_only_hint=False, destructive_hint=False), False),
    ],
)
def test_mcp_tool_is_idempotent_only_by_its_hints(hints, may_run_twice):
    assert is_idempotent(Tool(name="t", input_schema={"type": "object"}, annotations=hints)) is may_run_twice


def test_descriptions_and_schemas_have_limits(caplog):
    long = Tool(name="a", description="x" * 2 * DESCRIPTION_MAX_BYTES, input_schema={"type": "object"})
    wide = Tool(name="b", input_schema={"type": "object", "description": "x" * SCHEMA_MAX_BYTES})

    assert len(description_of(long).encode()) <= DESCRIPTION_MAX_BYTES
    assert list(offerable_tools("s", [long, wide])) == [long]
    assert "s: tool b is left out" in caplog.text
