"""Verdicts on data, and the limits of work with hostile schemas and data."""

import asyncio
import time

import pytest

from stagebus.shared.json_schema import schema_validator
from stagebus.shared.json_schema.schema_validator import SchemaValidator, Verdict

# The CPU time that a check may take: more than a second would mean that its work has no limit.
CPU_MAX_S = 1.0
PET = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "kind": {"enum": ["dog", "cat", 1, None]},
        "legs": {"type": "integer", "minimum": 0, "exclusiveMaximum": 100, "multipleOf": 2},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "uniqueItems": True},
        "owner": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}]},
    },
    "additionalProperties": False,
    "$defs": {"Person": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}},
}


def errors_of(schema, data) -> tuple[str, ...]:
    verdict = SchemaValidator(schema).validate_now(data)
    assert verdict.unchecked == ()
    return verdict.errors


@pytest.mark.parametrize(
    ("pet", "errors"),
    [
        ({"name": "Rex", "kind": "dog", "legs": 4.0, "tags": ["a", "b"], "owner": {"id": 1}}, ()),
        ({"name": "Rex", "owner": None, "kind": None}, ()),
        ({}, ("'name' is a required property",)),
        ([], ("the array is not of type 'object'",)),
        ({"name": 5}, ("name: 5 is not of type 'string'",)),
        ({"name": ""}, ("name: '' is too short: at least 1 characters, not 0",)),
        ({"name": "Rex" * 99}, (f"name: '{('Rex' * 99)[:80]}…' is too long: at most 5 characters, not 297",)),
        ({"name": "Rex", "kind": True}, ("kind: true is not one of 'dog', 'cat', 1, null",)),
        ({"name": "Rex", "legs": 100}, ("legs: 100 is greater than or equal to the exclusive maximum of 100",)),
        ({"name": "Rex", "legs": -3}, ("legs: -3 is less than the minimum of 0", "legs: -3 is not a multiple of 2")),
        ({"name": "Rex", "tags": ["a", "B"]}, ("tags.1: 'B' does not match '^[a-z]+$'",)),
        ({"name": "Rex", "tags": ["a", "b", "a"]}, ("tags: items must be unique, but 0 and 2 are the same",)),
        ({"name": "Rex", "nmae": 1}, ("additional properties are not allowed ('nmae' was unexpected)",)),
        (
            {"name": "Rex", "owner": {"id": "x"}},
            (
                "owner: fits none of the 2 options; what the closest one lacks follows",
                "owner.id: 'x' is not of type 'integer'",
            ),
        ),
    ],
)
def test_error_names_the_value_and_says_what_is_wrong(pet, errors):
    assert errors_of(PET, pet) == errors


@pytest.mark.parametrize(
    ("schema", "fits", "misfits"),
    [
        ({"const": [1, {"a": 2.0}]}, [1.0, {"a": 2}], [True, {"a": 2}]),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}, None], [{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]),
        ({"multipleOf": 0.1}, 0.3, 0.35),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, 1, 3),
        ({"not": {"required": ["a"]}}, {}, {"a": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}, {"c": 1}, {"a": 1}),
        ({"contains": {"const": 1}, "minContains": 2, "maxContains": 3}, [1, 1, 2], [1, 2]),
        ({"contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1]),
        ({"prefixItems": [{"type": "string"}], "items": False}, ["a"], ["a", 1]),
        ({"items": [{"type": "string"}]}, ["a", 1], [1]),
        ({"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}, {"x-a": ""}, {"x-a": 1}),
        ({"patternProperties": {"^x-": True}, "additionalProperties": {"type": "null"}}, {"a": None}, {"a": 1}),
        ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
        ({"dependentSchemas": {"a": {"minProperties": 2}}}, {"a": 1, "b": 1}, {"a": 1}),
        ({"allOf": [{"minItems": 1}, {"maxItems": 1}]}, [1], []),
        ({"maxProperties": 0}, {}, {"a": 1}),
        ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, {"a": {"a": {}}}, {"a": {"a": {"b": 1}}}),
        ({"$ref": "#/$defs/a~1b%7B%25/0", "$defs": {"a/b{%": [{"type": "null"}]}}, None, 1),
        ({"pattern": r"^\u00e4\/\u{1F600}$"}, "ä/😀", "a/😀"),
        ({"maxLength": 1}, "😀", "😀😀"),
    ],
)
def test_keyword(schema, fits, misfits):
    assert errors_of(schema, fits) == ()
    assert len(errors_of(schema, misfits)) >= 1


@pytest.mark.parametrize(
    "schema",
    [
        True, None, 7, [], {}, {"type": "any"}, {"type": {}}, {"required": True}, {"properties": []}, {"enum": 5},
        {"minimum": "0"}, {"exclusiveMinimum": True}, {"minLength": None}, {"multipleOf": 0}, {"multipleOf": "x"},
        {"items": 5}, {"allOf": {}}, {"anyOf": []}, {"oneOf": 1}, {"pattern": 1}, {"uniqueItems": "yes"},
        {"dependentRequired": {"a": 1}}, {"patternProperties": 1}, {"format": "email"}, {"$recursiveAnchor": True},
        {"maximum": 10**5000}, {"propertyNames": 1}, {"prefixItems": {}}, {"contains": 1, "minContains": "x"},
    ],
)  # fmt: skip
def test_malformed_keyword_allows_everything(schema):
    for data in ("x", 5, {"a": "x"}, ["x"], None):
        assert errors_of(schema, data) == ()


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"pattern": "(?=a)b"}, "the pattern '(?=a)b'"),
        ({"pattern": "x{1,2000}"}, "the pattern 'x{1,2000}'"),
        ({"pattern": "\ud800"}, "the pattern '\\ud800'"),
        ({"not": {"pattern": "(?=a)"}}, "the pattern '(?=a)'"),
        ({"oneOf": [{"pattern": "(?=a)"}, {"type": "string"}]}, "the pattern '(?=a)'"),
        ({"if": {"pattern": "(?=a)"}, "then": False}, "the pattern '(?=a)'"),
        ({"$ref": "other.json"}, "the reference 'other.json'"),
        ({"$ref": "#/$defs/nowhere"}, "the reference '#/$defs/nowhere'"),
        ({"$ref": "#anchor"}, "the reference '#anchor'"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"$ref": "#"}, "what is nested deeper than 150 schemas"),
    ],
)
def test_undecidable_part_is_named_and_counts_as_valid(schema, part):
    assert SchemaValidator(schema).validate_now("a") == Verdict((), (part,))


def test_undecidable_pattern_of_names_covers_them():
    schema = {"patternProperties": {"(?=a)": {"type": "null"}}, "additionalProperties": False}

    assert SchemaValidator(schema).validate_now({"a": 1}).errors == ()


def test_errors_are_few_and_short():
    verdict = SchemaValidator({"items": {"enum": ["x" * 10**5]}}).validate_now(["y" * 10**5] * 1000)
    far = SchemaValidator({"additionalProperties": {"type": "null"}}).validate_now({"k" * 10**5: 1})

    assert len(verdict.errors) == schema_validator.ERRORS_MAX
    assert all(len(error) <= schema_validator.ERROR_MAX_CHARS + 1 for error in verdict.errors + far.errors)


def nested(levels: int):
    data = {}
    for _ in range(levels):
        data = {"a": data}
    return data


DOUBLING = {f"b{level}": {"allOf": [{"$ref": f"#/$defs/b{level + 1}"}] * 2} for level in range(60)}
BRANCHING = {"anyOf": [{"properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["y"]}] * 2}
HOSTILE = {
    "a pattern that backtracks": ({"pattern": "^([a-zA-Z]+ ?)+$"}, "a" * 45 + "!"),
    "an e-mail's pattern": ({"pattern": '^.+@[^"\\-].+$'}, "@" * 100_000),
    "a pattern of names": ({"patternProperties": {"^(x+x+)+y$": {}}}, {"x" * 5000: 1}),
    "a large program": ({"pattern": "(.{1,250}a){3}b$"}, "ab" * 100_000),
    "large programs": ({"anyOf": [{"pattern": f"\\p{{L}}{{1,12}}{i}"} for i in range(1000)]}, "a"),
    "programs that are too large": ({"allOf": [{"pattern": f"\\p{{L}}{{1,900}}{i}"} for i in range(1000)]}, "a"),
    "unique items": ({"uniqueItems": True}, [[i] for i in range(50_000)]),
    "unique objects": ({"uniqueItems": True}, [{str(i): i for i in range(100_000)}]),
    "options": ({"items": {"enum": [str(i) for i in range(5000)]}}, ["4999"] * 100_000),
    "required": ({"items": {"required": [str(i) for i in range(5000)]}}, [{}] * 10_000),
    "references that double": ({"$ref": "#/$defs/b0", "$defs": DOUBLING | {"b60": {"type": "object"}}}, {}),
    "options that branch": ({"$ref": "#/$defs/x", "$defs": {"x": BRANCHING}}, nested(1000)),
    "loops that branch": ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1),
    "one of many": ({"$defs": {"x": {"oneOf": [{"items": {"$ref": "#/$defs/x"}}] * 50}}, "$ref": "#/$defs/x"}, [[[[[[]]]]]]),
    "a huge step": ({"multipleOf": 1e-300}, 1e308),
    "huge numbers": ({"multipleOf": 10**5000, "minimum": 10**5000, "maximum": -(10**5000)}, 2**63),
    "a deep value": ({"const": nested(900)}, nested(900)),
    "a long text": ({"enum": ["x"], "minLength": 9**9}, "x" * 4_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schema_costs_a_bounded_time(name):
    schema, data = HOSTILE[name]
    began = time.thread_time()
    SchemaValidator(schema).validate_now(data)

    assert time.thread_time() - began < CPU_MAX_S


async def test_long_check_leaves_the_event_loop_free():
    schema, data = HOSTILE["references that double"]
    check = asyncio.ensure_future(SchemaValidator(schema).validate(data))
    passes = 0
    while not check.done():
        await asyncio.sleep(0)
        passes += 1

    assert passes > 10
    assert check.result() == Verdict((), ("the whole: the check takes too long",))


async def test_check_behind_long_ones_is_given_up(monkeypatch):
    monkeypatch.setattr(schema_validator, "WAIT_MAX_S", 0.01)
    schema, data = HOSTILE["references that double"]
    verdicts = await asyncio.gather(*(SchemaValidator(schema).validate(data) for _ in range(20)))
    short = await SchemaValidator(PET).validate({"name": "Rex"})

    assert set(verdicts) == {Verdict((), ("the whole: the check takes too long",))}
    assert short == Verdict()
