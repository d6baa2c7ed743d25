import pytest

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi import openapi_schema
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
    assert SchemaConverter(document).convert(schema) == made


def test_references_of_one_name_are_told_apart_and_cycles_end():
    document = NEW | {
        "a": {"Node": {"properties": {"next": {"$ref": "#/a/Node"}, "other": {"$ref": "#/b/Node"}}}},
        "b": {"Node": {"type": "string"}},
    }
    maker = SchemaConverter(document)

    assert maker.convert({"$ref": "#/a/Node", "description": "d"}) == {"$ref": "#/$defs/Node", "description": "d"}
    assert maker.definitions == {
        "Node": {"properties": {"next": {"$ref": "#/$defs/Node"}, "other": {"$ref": "#/$defs/Node_1"}}},
        "Node_1": {"type": "string"},
    }
    assert SchemaConverter({**document, **OLD}).convert({"$ref": "#/b/Node", "description": "d"}) == {
        "$ref": "#/$defs/Node"
    }


def test_pointers_are_read_as_written():
    assert follow({"a/b": [{"~": 1}]}, {"$ref": "#/a~1b/0/~0"}) == 1


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


def test_schema_with_too_many_nodes_is_refused(monkeypatch):
    """With YAML aliases, a few lines expand to a billion nodes."""
    monkeypatch.setattr(openapi_schema, "NODES_MAX", 1000)
    shared: dict = {"type": "string"}
    for _ in range(20):
        shared = {"allOf": [shared, shared]}

    with pytest.raises(BadTool, match="more than 1000 nodes"):
        SchemaConverter(NEW).convert(shared)
