import pytest

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi.openapi_schema import SchemaConverter, follow

OLD, NEW = {"openapi": "3.0.4"}, {"openapi": "3.1.1"}


@pytest.mark.parametrize(
    ("document", "schema", "made"),
    [
        (OLD, {"type": "string", "nullable": True, "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        (OLD, {"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        (OLD, {"maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
        (NEW, {"exclusiveMinimum": 1, "type": ["string", "null"]}, {"exclusiveMinimum": 1, "type": ["string", "null"]}),
        (
            NEW,
            {"type": "array", "items": {"example": 1, "x-a": 2, "const": 3}},
            {"type": "array", "items": {"const": 3}},
        ),
        (NEW, {"properties": {"title": {"title": "T"}}}, {"properties": {"title": {}}}),
        (NEW, {"additionalProperties": False, "not": True}, {"additionalProperties": False, "not": True}),
        (NEW, None, {}),
    ],
)
def test_schema_is_one_of_2020(document, schema, made):
    assert SchemaConverter(document, 2**16).convert(schema) == made


def test_references_of_one_name_are_told_apart_and_cycles_end():
    document = NEW | {
        "a": {"Node": {"properties": {"next": {"$ref": "#/a/Node"}, "other": {"$ref": "#/b/Node"}}}},
        "b": {"Node": {"type": "string"}},
    }
    maker = SchemaConverter(document, 2**16)

    assert maker.convert({"$ref": "#/a/Node", "description": "d"}) == {"$ref": "#/$defs/Node", "description": "d"}
    maker.finish()
    assert maker.definitions == {
        "Node": {"properties": {"next": {"$ref": "#/$defs/Node"}, "other": {"$ref": "#/$defs/Node_1"}}},
        "Node_1": {"type": "string"},
    }
    assert SchemaConverter({**document, **OLD}, 2**16).convert({"$ref": "#/b/Node", "description": "d"}) == {
        "$ref": "#/$defs/Node"
    }


def test_name_that_looks_numbered_is_no_end_of_names():
    maker = SchemaConverter(NEW, 2**16)
    names = [maker.convert({"$ref": ref})["$ref"] for ref in ("#/a/Node", "#/a/Node_2", "#/b/Node", "#/c/Node")]

    assert names == ["#/$defs/Node", "#/$defs/Node_2", "#/$defs/Node_3", "#/$defs/Node_4"]


def test_pointers_are_read_as_written():
    assert follow({"a/b": [{"~": 1}]}, {"$ref": "#/a~1b/0/~0"}) == 1
    assert follow({"a/{b}": 2}, {"$ref": "#/a~1%7Bb%7D"}) == 2


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("other.yaml#/a", "leads out of the document"), ("http://evil.example/#/a", "leads out"), ("#", "leads out"),
        ("#/nowhere", "is missing"), ("#/list/9", "is missing"), ("#/loop", "refers to itself"),
    ],
)  # fmt: skip
def test_unresolvable_reference_is_an_error(reference, words):
    with pytest.raises(BadTool, match=words):
        follow({"list": [1], "loop": {"$ref": "#/loop"}}, {"$ref": reference})


def doubled(value, levels: int):
    """Returns a value that expands to 2 ** levels of the given one, as YAML aliases can make it."""
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize("keyword", ["enum", "const", "default", "allOf", "anyOf"])
def test_schema_that_expands_to_too_much_is_refused(keyword):
    value = doubled({"type": "string"}, 40)
    if keyword in ("allOf", "anyOf"):
        for _ in range(40):
            value = [{keyword: value}, {keyword: value}]

    with pytest.raises(BadTool, match=r"more than 65536 bytes \(STAGEBUS_TOOL_SCHEMA_MAX_BYTES\)|nested deeper"):
        SchemaConverter(NEW, 2**16).convert({keyword: value})


def test_long_chain_of_references_is_followed():
    """Real documents have chains of hundreds, which recursion would not survive."""
    chain = {f"n{i}": {"properties": {"next": {"$ref": f"#/s/n{i + 1}"}}} for i in range(2000)}
    maker = SchemaConverter(NEW | {"s": {**chain, "n2000": {"type": "null"}}}, 2**18)
    maker.convert({"$ref": "#/s/n0"})
    maker.finish()

    assert len(maker.definitions) == 2001
    assert maker.definitions["n2000"] == {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "any", "$recursiveAnchor": True, "properties": {"a": {"type": "string", "required": True}}},
         {"properties": {"a": {"type": "string"}}}),
        ({"minimum": "0", "maxLength": -1, "maxItems": 1.5, "multipleOf": 2, "enum": [], "required": [1], "anyOf": []},
         {"multipleOf": 2}),
        ({"pattern": 5, "description": {"a": 1}, "format": "date", "uniqueItems": "yes", "items": []}, {"format": "date"}),
        ({"default": {"title": 1}, "const": None, "dependentRequired": {"a": ["b"]}},
         {"default": {"title": 1}, "const": None, "dependentRequired": {"a": ["b"]}}),
        ({"properties": {"required": {"type": "string"}, "id": {"readOnly": True}}, "required": ["required", "id"]},
         {"properties": {"required": {"type": "string"}}, "required": ["required"]}),
    ],
)  # fmt: skip
def test_unknown_and_malformed_keywords_are_left_out(schema, made):
    assert SchemaConverter(NEW, 2**16).convert(schema) == made
