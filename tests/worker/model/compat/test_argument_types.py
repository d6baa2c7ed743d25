"""Arguments in the types of the tool's schema."""

import json
import time
from typing import Any

import pytest

from stagebus.worker.model.compat.argument_types import fit_arguments

PROPERTIES: dict[str, Any] = {
    "id": {"type": "integer"},
    "ratio": {"type": "number"},
    "either": {"type": ["integer", "number"]},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "numbers": {"type": "array", "items": {"type": "integer"}},
    "rows": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Row"}}, {"type": "null"}]},
    "precise": {"type": "boolean", "default": False},
    "text": {"type": "string"},
    "any": {},
    "loop": {"$ref": "#/properties/loop"},
}
ROW = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["id"], "$defs": {"Row": ROW}}


@pytest.mark.parametrize(
    ("written", "fitted"),
    [
        ({"id": 5.0}, {"id": 5}),
        ({"maybe": 5.0, "rows": [{"n": 1.0}, {"n": 2}]}, {"maybe": 5, "rows": [{"n": 1}, {"n": 2}]}),
        ({"numbers": "[1, 2.0, 3]"}, {"numbers": [1, 2, 3]}),
        ({"numbers": "[1, 2,]", "precise": "True"}, {"numbers": [1, 2], "precise": True}),
        ({"id": "5", "rows": '[{"n": 1}]'}, {"id": 5, "rows": [{"n": 1}]}),
        ({"id": 1, "precise": None, "text": None}, {"id": 1}),
    ],
)
def test_value_gets_the_type_of_its_parameter(written: dict[str, Any], fitted: dict[str, Any]) -> None:
    found = json.loads(fit_arguments(json.dumps(written), SCHEMA))

    assert json.dumps(found) == json.dumps(fitted)


@pytest.mark.parametrize(
    "written",
    [
        {"id": 5.5, "ratio": 5.0, "either": 5.0, "any": 5.0, "other": 5.0},
        {"id": None, "maybe": None, "any": None, "other": None},
        {"text": "[1]", "any": "[1]", "numbers": "one", "precise": "perhaps", "loop": "[1]"},
        {"text": 5, "id": 1e300, "numbers": {"0": 1}},
    ],
)
def test_other_values_stay_byte_for_byte(written: dict[str, Any]) -> None:
    text = json.dumps(written, indent=1)

    assert fit_arguments(text, SCHEMA) == text
    assert fit_arguments(text, {}) == text


def test_invalid_arguments_and_schemas_change_nothing() -> None:
    assert fit_arguments("{", SCHEMA) == "{"
    assert fit_arguments("[5.0]", SCHEMA) == "[5.0]"
    for broken in ({"id": 1}, {"id": {"type": {}, "anyOf": [1, {"type": 2}], "items": 3}}, {"id": {"$ref": "#/x/y"}}):
        assert fit_arguments('{"id": 5.0}', {"properties": broken, "required": 1}) == '{"id": 5.0}'


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [
        ({"x": "1"}, {"$ref": "#/$defs/a", "$defs": {}}),
        ({"x": "1"}, {"anyOf": [{"$ref": "#/properties/x"}] * 9}),
        ({"x": "1"}, {"oneOf": [{"anyOf": [{"$ref": "#/properties/x"}] * 9}] * 9}),
        ({"x": ["1"] * 100_000}, {"items": {"type": "integer"}}),
        ({"x": ["1"] * 300_000}, {"items": {"type": "integer"}}),
    ],
)
def test_work_has_a_limit(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    """Beyond it, the arguments stay as they are."""
    written = json.dumps(arguments)
    began = time.thread_time()

    assert fit_arguments(written, {"properties": {"x": schema}}) == written
    assert time.thread_time() - began < 0.5
