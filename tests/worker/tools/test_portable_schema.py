"""Schemas as providers accept them. The rules are those of the providers' error messages."""

import time
from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stagebus.worker.tools.portable_schema import fit_for_providers
from stagebus.worker.tools.signature import read_signature

TEXT = {"type": "string"}
AB = {"type": "object", "properties": {"a": TEXT, "b": TEXT}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "fitted"),
    [
        ({"type": "object"}, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        ({"properties": {"a": TEXT}}, {"type": "object", "properties": {"a": TEXT}}),
        ({**AB, "required": None}, AB),
        ({"type": "object", "properties": None}, {"type": "object", "properties": {}}),
        ({**AB, "required": ["a", "c"]}, {**AB, "required": ["a"]}),
        ({**AB, "description": None, "$schema": 5, "additionalProperties": False}, {**AB, "additionalProperties": False}),
        ({**AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, AB),
        ({**AB, "oneOf": [{"required": ["a", "b"]}, {"required": ["b"]}]}, {**AB, "required": ["b"]}),
        ({**AB, "not": {"required": ["a"]}, "enum": [{}]}, AB),
        (
            {"anyOf": [{"properties": {"k": {"const": 1}, "a": TEXT}, "required": ["k"]},
                       {"properties": {"k": {"const": 2}}, "required": ["k"]}]},
            {"type": "object", "properties": {"k": {"anyOf": [{"const": 1}, {"const": 2}]}, "a": TEXT}, "required": ["k"]},
        ),
        (
            {"allOf": [{"properties": {"a": TEXT}, "required": ["a"]}, {"properties": {"b": TEXT}, "required": ["b"]}]},
            {**AB, "required": ["a", "b"]},
        ),
        (
            {"$ref": "#/definitions/X", "definitions": {"X": {**AB, "required": ["a"]}}},
            {**AB, "required": ["a"], "definitions": {"X": {**AB, "required": ["a"]}}},
        ),
        ({"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}, {"type": "object", "properties": {"a": {}}}),
        ({"type": "object", "properties": {"a": {"$ref": "#/anyOf/0"}}, "anyOf": [TEXT]}, {"type": "object", "properties": {"a": {}}}),
        ({"type": "object", "properties": {"a": True, "b": False}}, {"type": "object", "properties": {"a": {}}}),
    ],
)  # fmt: skip
def test_top_of_a_schema_is_an_object_with_properties(schema, fitted):
    assert fit_for_providers(schema) == fitted


@pytest.mark.parametrize(
    ("schema", "fitted"),
    [
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"type": "array", "items": True}, {"type": "array", "items": {}}),
        ({"type": "array", "items": None}, {"type": "array", "items": {}}),
        ({"type": ["array", "null"]}, {"type": ["array", "null"], "items": {}}),
        ({"type": "array", "items": [TEXT, TEXT]}, {"type": "array", "prefixItems": [TEXT, TEXT], "items": TEXT}),
        (
            {"type": "array", "prefixItems": [TEXT, {"type": "null"}]},
            {"type": "array", "prefixItems": [TEXT, {"type": "null"}], "items": {"anyOf": [TEXT, {"type": "null"}]}},
        ),
        ({"anyOf": [{"type": "array"}, TEXT]}, {"anyOf": [{"type": "array", "items": {}}, TEXT]}),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, {"type": "number", "minimum": 0}),
        ({"type": "integer", "maximum": 2**64, "default": 10**400}, {"type": "integer"}),
        ({"type": "number", "maximum": float("inf"), "default": float("nan")}, {"type": "number"}),
        ({"type": "string", "required": True, "enum": None, "minLength": "1"}, TEXT),
        ({"type": "any"}, {}),
        ({"type": "string", "description": "\ud800"}, TEXT),
        ({"type": "object"}, {"type": "object"}),
    ],
)  # fmt: skip
def test_parts_of_a_schema_are_valid_and_arrays_have_items(schema, fitted):
    whole = fit_for_providers({"type": "object", "properties": {"p": schema}})

    assert whole == {"type": "object", "properties": {"p": fitted}}


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": "#"}] * 3, "properties": {"a": TEXT}},
        {"$ref": "#"},
        {"$ref": "#/$defs/0", "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}},
        nested(2000),
    ],
    ids=["cycle", "itself", "doubling", "deep"],
)
def test_schema_that_expands_takes_little_time(schema):
    started = time.process_time()
    fitted = fit_for_providers(schema)

    assert fitted["type"] == "object"
    assert time.process_time() - started < 1


def plan(meals: list[Literal["lunch", "dinner"]], at: date | None = None, guests: int = 2) -> None:
    """Has parameters of several kinds."""


@pytest.mark.parametrize("is_strict", [True, False])
def test_schema_of_a_function_stays_as_it_is(is_strict):
    parameters = read_signature(plan, "plan", is_strict=is_strict).parameters

    assert fit_for_providers(parameters) == parameters


def test_tuple_of_a_function_gets_items():
    def place(at: tuple[float, float], *, tags: tuple[str, int] = ("a", 1)) -> None:
        pass

    fitted = fit_for_providers(read_signature(place, "place").parameters)["properties"]

    assert fitted["at"]["items"] == {"type": "number"}
    assert fitted["tags"]["items"] == {"anyOf": [{"type": "string"}, {"type": "integer"}]}


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "properties", "items", "anyOf", "allOf", "required", "enum", "$ref", "$defs", "a", "minLength", "not"]
    ), inner | st.sampled_from(["object", "array", "#", "#/$defs/a"]), max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json.filter(lambda value: isinstance(value, dict)))
def test_any_object_becomes_a_valid_schema_that_stays_as_it_is(schema):
    fitted = fit_for_providers(schema)

    Draft202012Validator.check_schema(fitted)
    assert not {"anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref"} & fitted.keys()
    assert fitted["type"] == "object"
    assert set(fitted.get("required", ())) <= fitted["properties"].keys()
    assert fit_for_providers(fitted) == fitted
