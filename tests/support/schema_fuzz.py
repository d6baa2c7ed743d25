"""Random schemas, patterns and OpenAPI documents as third parties could write them, and checks of what is made of them.

None may cost more CPU time than `CPU_MAX_S`. Verdicts are compared with those of `jsonschema` and of Python's `re`.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing.exceptions import Unresolvable

from stagebus.shared.errors import BadTool
from stagebus.shared.json_schema.linear_pattern import LinearPattern
from stagebus.shared.json_schema.schema_validator import SchemaValidator, Verdict
from stagebus.worker.model.compat.argument_types import fit_arguments
from stagebus.worker.tools.openapi.document_process import DocumentReading
from stagebus.worker.tools.portable_schema import fit_for_providers

CPU_MAX_S = 2.0
SCHEMA_MAX_BYTES = 2**14
DOCUMENTS = Path(__file__).parents[1] / "worker" / "tools" / "openapi"


@contextmanager
def limited_work() -> Iterator[None]:
    """Fails if the block takes too much CPU time."""
    began = time.thread_time()
    yield
    taken = time.thread_time() - began
    assert taken < CPU_MAX_S, f"it took {taken:.1f} s of CPU time"


# --- schemas -----------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "ab", "x-a", ""])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -2.0, 1e308, 2**70, 0.1])
DATA = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
COUNTS = st.integers(0, 3)
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/nowhere", "other.json", "#x"])
SIMPLE_PATTERNS = st.sampled_from(["^a", "b$", "^x-", "a|b", "^$", "[^a]"])
PATTERNS = SIMPLE_PATTERNS | st.sampled_from(
    ["(?=a)b", "^([a-z]+ ?)+$", "a{1,2000}", "(", "(.{1,200}a){2}b", "\\p{L}{1,900}"]
)


def keywords(inner: st.SearchStrategy[Any], patterns: st.SearchStrategy[str]) -> dict[str, st.SearchStrategy[Any]]:
    """Returns a strategy for each keyword."""
    schemas = st.lists(inner, min_size=1, max_size=3)
    types = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])
    return {
        "type": types | st.lists(types, min_size=1, max_size=2, unique=True),
        "enum": st.lists(DATA, min_size=1, max_size=3),
        "const": DATA,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "patternProperties": st.dictionaries(patterns, inner, max_size=2),
        "pattern": patterns,
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2),
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "uniqueItems": st.booleans(),
        "prefixItems": schemas,
        **dict.fromkeys(
            ("items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains"), inner
        ),
        **dict.fromkeys(("allOf", "anyOf", "oneOf"), schemas),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), COUNTS),
        **dict.fromkeys(("minProperties", "maxProperties", "minContains", "maxContains"), COUNTS),
    }


def schemas_of(leaf: st.SearchStrategy[Any], patterns: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Returns schemas with a few keywords each, up to three levels deep."""
    schemas = leaf
    for _ in range(3):
        one = st.sampled_from(sorted(keywords(schemas, patterns))).flatmap(
            lambda name, inner=schemas: st.tuples(st.just(name), keywords(inner, patterns)[name])
        )
        schemas = leaf | st.lists(one, max_size=3).map(dict)
    return schemas


SCHEMA = schemas_of(st.booleans(), SIMPLE_PATTERNS)
ITEMS = st.lists(NUMBERS | st.booleans() | NAMES, max_size=4)
# Data of the kind that a keyword looks at, since most random data passes it by.
DATA_OF = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), NUMBERS),
    **dict.fromkeys(("minLength", "maxLength", "pattern"), NAMES),
    **dict.fromkeys(("items", "prefixItems", "contains", "minItems", "maxItems"), ITEMS),
    "uniqueItems": st.lists(ITEMS | st.just([1]) | st.just([1.0]), max_size=3),
}


def _focused(name: str) -> st.SearchStrategy[tuple[Any, Any]]:
    settings = keywords(SCHEMA, SIMPLE_PATTERNS)
    objects = st.dictionaries(NAMES, NUMBERS | NAMES, min_size=1, max_size=3)
    schema = {name: settings[name]} | ({other: settings[other] for other in ("then", "else")} if name == "if" else {})
    return st.tuples(st.fixed_dictionaries(schema), DATA_OF.get(name, objects | DATA))


FOCUSED = st.sampled_from(sorted(keywords(SCHEMA, SIMPLE_PATTERNS))).flatmap(_focused)
REFERRING = st.tuples(st.builds(lambda target: {"$ref": "#/$defs/a", "$defs": {"a": target}}, SCHEMA), DATA)
VALID = st.one_of(FOCUSED, REFERRING, st.tuples(SCHEMA, DATA))


def take_valid_schema(case: tuple[Any, Any]) -> bool:
    """The verdict is that of `jsonschema`."""
    schema, data = case
    with limited_work():
        verdict = SchemaValidator(schema).validate_now(data)
    if not verdict.unchecked:
        try:
            expected = Draft202012Validator(schema).is_valid(data)
        except (OverflowError, Unresolvable):
            return not verdict.errors
        assert (not verdict.errors) == expected, verdict
    return not verdict.errors


def _looping(case: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
    root, first, second, data = case
    return {**(root if isinstance(root, dict) else {}), "$defs": {"a": first, "b": second}}, data


LEAVES = st.booleans() | st.builds(lambda target: {"$ref": target}, REFERENCES) | DATA
HOSTILE_SCHEMA = schemas_of(LEAVES, PATTERNS)
HOSTILE = st.tuples(HOSTILE_SCHEMA, HOSTILE_SCHEMA, HOSTILE_SCHEMA, DATA).map(_looping)


def take_hostile_schema(case: tuple[Any, Any]) -> bool:
    """Neither a check of data nor the conversions of a schema take long or fail, whatever the schema refers to."""
    schema, data = case
    with limited_work():
        verdict = SchemaValidator(schema).validate_now(data)
    assert all(len(text) <= 301 for text in verdict.errors)
    with limited_work():
        fitted = fit_for_providers(schema)
        fit_arguments(orjson.dumps({"a": str(data)}).decode(), {**schema, "properties": {"a": {"$ref": "#"}}})
    assert fitted["type"] == "object"
    return verdict == Verdict()


# --- patterns ----------------------------------------------------------------

ATOMS = st.sampled_from(["a", "b", ".", "\\d", "\\w", "[ab]", "[^a-c]", "\\.", "\\/", "(a|b)", "(?:ab)", "^", "$", "\\u0061",
    "(a*)", "(?=a)", "\\1", "(", ")", "é", "\\p{L}", "\\s"])  # fmt: skip
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,30}", "{0,900}", "{3000}", "*?"])
PATTERN = st.lists(st.tuples(ATOMS, REPEATS).map("".join), max_size=6).map("".join)
PATTERN_CASES = st.tuples(
    PATTERN | PATTERN.map(lambda p: f"^({p})+$"), st.text(alphabet="ab1. é-", max_size=30), COUNTS
)


def take_pattern(case: tuple[str, str, int]) -> bool:
    """It is refused, or matches in linear time what Python's `re` matches."""
    pattern, text, tens = case
    with limited_work():
        compiled = LinearPattern(pattern)
        found = None if compiled.refusal else compiled.is_in(text)
        if not compiled.refusal and compiled.size * len(text) * 10**tens < 10**7:
            compiled.is_in(text * 10**tens)
    if found is not None and "\\p" not in pattern and len(text) < 12 and "+$" not in pattern:
        with suppress(re.error):
            assert found == bool(re.search(pattern, text, re.ASCII)), (pattern, text)
    return found is not None


# --- documents ---------------------------------------------------------------

PETSHOP = (DOCUMENTS / "petshop.yaml").read_bytes()
QUIRKS = (DOCUMENTS / "quirks.yaml").read_bytes()
BOMBS = [
    "enum: [*a, *a, *a, *a]", "const: *a", "default: *a", "description: *a", "allOf: [*a, *a]", "properties: {x: *a, y: *a}",
    "<<: *a", "<<: [*a, *a]", "required: *a", "pattern: *a", "type: *a", "items: *a", "$ref: '#/x3'", "x: [[[[*a]]]]",
]  # fmt: skip
BOMB = st.lists(st.lists(st.sampled_from(BOMBS), min_size=1, max_size=3, unique=True), min_size=1, max_size=25)


def bomb(levels: list[list[str]]) -> bytes:
    """Returns a document with a schema whose levels refer to the one before by aliases."""
    lines = ["openapi: 3.1.0", "x0: &a0 {type: object}"]
    for number, members in enumerate(levels, 1):
        text = ", ".join(members).replace("*a", f"*a{number - 1}")
        lines.append(f"x{number}: &a{number} {{{text}}}")
    body = f"{{content: {{application/json: {{schema: *a{len(levels)}}}}}}}"
    lines.append(f"paths: {{/a: {{post: {{operationId: addPet, requestBody: {body}}}}}}}")
    return "\n".join(lines).encode()


def take_document(text: bytes) -> bool:
    """It is refused by a BadTool, or each operation has a small, valid schema."""
    with limited_work():
        try:
            operations = DocumentReading(["addPet"], "http://127.0.0.1", "", {}, SCHEMA_MAX_BYTES).read(text)
        except BadTool as exc:
            assert len(str(exc)) < 2000
            return False
    for operation in operations:
        schema = operation.schema
        assert len(orjson.dumps(schema)) <= SCHEMA_MAX_BYTES
        with limited_work():
            SchemaValidator(schema).validate_now({"body": {}, "shop": "s"})
            fit_for_providers(schema)
        Draft202012Validator.check_schema(schema)
    return True
