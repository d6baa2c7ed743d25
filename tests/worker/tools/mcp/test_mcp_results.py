import pytest
from mcp_types import CallToolResult, Tool, ToolAnnotations

from stagebus.worker.tools.mcp.mcp_listing import is_idempotent, plain_listing
from stagebus.worker.tools.mcp.mcp_results import NO_TEXT, plain_result, reply_of
from stagebus.worker.tools.tool_results import DESCRIPTION_MAX_BYTES

SCHEMA_MAX_BYTES = 2**16
OBJECT = {"type": "object", "properties": {"q": {"type": "string"}}}
GOOD = {"name": "good", "description": "A good tool.", "inputSchema": OBJECT}


def reply(**result):
    return reply_of(CallToolResult.model_validate(plain_result(result), by_name=False))


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": []}, ""),
        ({"content": [], "structuredContent": {"a": 1}}, '{"a":1}'),
        ({"content": [text('{ "a": 1 }')], "structuredContent": {"a": 1}}, '{ "a": 1 }'),
        ({"content": [text("one found")], "structuredContent": {"a": 1}}, 'one found\n{"a":1}'),
        ({"content": [text("5")], "structuredContent": {"result": 5}}, "5"),
        ({"structuredContent": {"result": []}}, '{"result":[]}'),
        ({"content": [{"type": "audio", "data": "aGVsbG8=", "mimeType": "audio/wav"}]}, "[audio: audio/wav, 5 bytes, not shown]"),
        ({"content": [{"type": "image", "data": "aGVsbG8="}]}, "[image: unknown type, 5 bytes, not shown]"),
        ({"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "hello"}}]}, "[resource: file:///a]\nhello"),
        (
            {"content": [{"type": "resource", "resource": {"uri": "file:///b", "blob": "AAAA"}}]},
            "[resource: file:///b, binary, 3 bytes, not shown]",
        ),
        ({"content": [{"type": "resource_link", "uri": "file:///c", "title": "C"}]}, "[resource: file:///c (C)]"),
        # What the protocol does not allow.
        ({"content": "42"}, "42"),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": text("42")}, "42"),
        ({"content": ["4", "2"]}, "4\n2"),
        ({"content": [text("42"), {"type": "json", "json": {"n": 42}}]}, '42\n{"type":"json","json":{"n":42}}'),
        ({"content": [{"type": "text", "text": None}, {"text": "42"}]}, '{"type":"text","text":null}\n{"text":"42"}'),
        ({"content": [{"type": "image", "data": 5}]}, '{"type":"image","data":5}'),
        ({"content": [{"type": "resource"}]}, '{"type":"resource"}'),
        ({"structuredContent": {"n": 42}}, '{"n":42}'),
        ({"structuredContent": [1, 2**70]}, "[1,1180591620717411303424]"),
        ({"content": [text("a")], "structuredContent": float("nan")}, "a\nnull"),
    ],
)  # fmt: skip
def test_mcp_result_is_text(result, told):
    assert reply(**result) == (told, False)


@pytest.mark.parametrize(
    ("result", "told"),
    [({"content": [text("no")]}, "no"), ({"content": []}, NO_TEXT), ({"structuredContent": {"e": 1}}, '{"e":1}')],
)
def test_error_stays_one_and_always_has_a_text(result, told):
    assert reply(**result, isError=True) == (told, True)


def test_results_of_other_kinds_are_left_to_the_sdk():
    asking = {"resultType": "input_required", "inputRequests": {}}

    assert plain_result(asking) is asking
    assert plain_result({"resultType": "complete", "content": []})["resultType"] == "complete"


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


@pytest.mark.parametrize(
    ("bad", "name", "reason"),
    [
        (None, "None", "the tool: Input should be"),
        ("bad", "None", "the tool: Input should be"),
        ({"name": "bad"}, "bad", "inputSchema: Field required"),
        ({"name": "bad", "inputSchema": None}, "bad", "inputSchema: "),
        ({"name": "bad", "inputSchema": {}}, "bad", "does not describe an object"),
        ({"name": "bad", "inputSchema": {"type": "string"}}, "bad", "of type string"),
        ({"name": "bad", "inputSchema": {"type": ["object", "null"]}}, "bad", "of type"),
        ({"name": "", "inputSchema": OBJECT}, "", "name: "),
        ({"name": 5, "inputSchema": OBJECT}, "5", "name: "),
        ({"name": "x" * 300, "inputSchema": OBJECT}, "x" * 256, "name: "),
        ({"inputSchema": OBJECT}, "None", "name: Field required"),
        ({"name": "bad", "inputSchema": OBJECT, "annotations": {"readOnlyHint": "true", "title": 5}}, "bad", "annotations.title"),
        ({"name": "bad", "inputSchema": OBJECT, "annotations": []}, "bad", "annotations: "),
        ({"name": "bad", "inputSchema": OBJECT, "description": {"en": "x"}}, "bad", "description: "),
        ({"name": "bad", "inputSchema": {**OBJECT, "description": "x" * SCHEMA_MAX_BYTES}}, "bad", "the limit is 65536"),
        ({"name": "bad", "inputSchema": {**OBJECT, "enum": [10**400, "x" * SCHEMA_MAX_BYTES]}}, "bad", "the limit is 65536"),
    ],
)  # fmt: skip
def test_bad_tool_is_left_out_and_no_other(bad, name, reason):
    left_out = {}
    tools = plain_listing({"tools": [GOOD, bad, {**GOOD, "name": "next"}]}, left_out, SCHEMA_MAX_BYTES)["tools"]

    assert [tool["name"] for tool in tools] == ["good", "next"]
    assert list(left_out) == [name]
    assert reason in left_out[name]


def test_listing_keeps_what_the_sdk_needs_and_takes_null_for_nothing():
    long = {**GOOD, "description": "x" * 2 * DESCRIPTION_MAX_BYTES, "outputSchema": OBJECT, "icons": 5, "_meta": 5}
    untold = {
        "name": "a",
        "title": "A",
        "description": None,
        "inputSchema": {"properties": {"h": {"x-mcp-header": "H"}}},
    }
    listing = plain_listing(
        {"tools": [long, untold], "nextCursor": "", "resultType": "complete", "ttlMs": 5}, {}, SCHEMA_MAX_BYTES
    )

    assert listing["tools"][0].keys() == {"name", "description", "inputSchema", "annotations"}
    assert len(listing["tools"][0]["description"].encode()) <= DESCRIPTION_MAX_BYTES
    assert listing["tools"][1]["description"] == "A"
    assert listing["tools"][1]["inputSchema"] == {**untold["inputSchema"], "type": "object"}
    assert {name: value for name, value in listing.items() if name != "tools"} == {"resultType": "complete", "ttlMs": 5}
    assert plain_listing({"tools": None, "nextCursor": None}, {}, SCHEMA_MAX_BYTES) == {"tools": []}
