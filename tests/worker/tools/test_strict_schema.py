import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.signature import read_signature
from stagebus.worker.tools.tool_context import ToolContext

CONTEXT = ToolContext(run_id="r", call_id="c")
# What OpenAI's guide to structured outputs names; anything else is refused there.
KEYWORDS = {
    "type", "properties", "required", "additionalProperties", "$defs", "$ref", "anyOf", "enum", "description", "items",
    "pattern", "format", "multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "minItems",
    "maxItems",
}  # fmt: skip


class Meal(Enum):
    LUNCH = "lunch"
    DINNER = "dinner"


@dataclass
class Seat:
    """The place of a guest."""

    row: int
    side: Literal["left", "right"] = "left"


class Guest(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    seat: Seat | None = None
    diet: str = "any"


class Card(BaseModel):
    kind: Literal["card"]
    number: str = "none"


class Cash(BaseModel):
    kind: Literal["cash"]
    coins: int = 3


CASH = Cash(kind="cash")


def book(
    place: str,
    guests: list[Guest],
    context: ToolContext,
    meal: Meal = Meal.DINNER,
    stars: Annotated[int, Field(ge=1, le=5)] = 3,
    note: str | None = "none given",
    payment: Card | Cash | None = None,
    by_key: Annotated[Card | Cash, Field(discriminator="kind")] = CASH,
    ids: set[UUID] = frozenset(),
) -> None:
    """Book.

    Args:
        stars: how good it has to be.
        meal: when.
    """


def schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    for part in [*inner, *([schema["items"]] if "items" in schema else [])]:
        yield from schemas(part)


STRICT = read_signature(book, "book", is_strict=True)


def test_schema_keeps_to_what_strict_mode_knows() -> None:
    Draft202012Validator.check_schema(STRICT.parameters)
    for schema in schemas(STRICT.parameters):
        assert set(schema) <= KEYWORDS, schema
        assert "$ref" not in schema or set(schema) == {"$ref"}
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])


def test_optional_parameters_may_be_null_and_say_what_it_means() -> None:
    properties = STRICT.parameters["properties"]

    assert properties["stars"] == {
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": 5}, {"type": "null"}],
        "description": "how good it has to be. Null for the default, 3.",
    }
    assert properties["meal"] == {
        "anyOf": [{"$ref": "#/$defs/Meal"}, {"type": "null"}],
        "description": 'when. Null for the default, "dinner".',
    }
    assert properties["place"] == {"type": "string"}


def bound(**given: Any) -> dict[str, Any]:
    nulls = dict.fromkeys(STRICT.parameters["properties"])
    arguments = {**nulls, "place": "a", "guests": [], **given}
    Draft202012Validator(STRICT.parameters).validate(arguments)
    return STRICT.bind("book", json.dumps(arguments), CONTEXT)[1]


def test_null_is_the_default_wherever_there_is_one() -> None:
    named = bound(guests=[{"name": "Ann", "seat": {"row": 1, "side": None}, "diet": None}])

    assert (named["meal"], named["stars"], named["ids"]) == (Meal.DINNER, 3, frozenset())
    assert named["guests"] == [Guest(name="Ann", seat=Seat(1, "left"), diet="any")]


def test_null_that_the_function_takes_is_itself() -> None:
    assert bound(note=None)["note"] is None
    assert bound(guests=[{"name": "Ann", "seat": None, "diet": "x"}])["guests"][0].seat is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"kind": "card", "number": None}, Card(kind="card")), ({"kind": "cash", "coins": None}, Cash(kind="cash"))],
)
def test_nulls_in_a_union_are_those_of_its_member(given: dict[str, Any], expected: BaseModel) -> None:
    assert bound(payment=given)["payment"] == expected
    assert bound(by_key=given)["by_key"] == expected


def test_strict_schema_does_not_drop_other_checks() -> None:
    with pytest.raises(Exception, match=r"guests\.0\.name: String should have at least 1 character"):
        bound(guests=[{"name": "", "seat": None, "diet": None}])


def anything(x) -> None: ...
def free_keys(filters: dict[str, int]) -> None: ...
def nested(guests: list[dict]) -> None: ...
def pair(place: tuple[int, str]) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (anything, "x: it has no type"),
        (free_keys, "filters: it allows any key"),
        (nested, r"guests\[\]: it allows any key"),
        (pair, "place: its items have different types"),
    ],
)
def test_schema_that_cannot_be_strict_stops_the_start(function: Any, words: str) -> None:
    with pytest.raises(BadTool, match=f"tool '{function.__name__}' cannot be strict: {words}"):
        ToolRegistry([tool(strict=True)(function)], Settings())


async def test_strict_tool_definition_has_strict_true() -> None:
    registry = ToolRegistry([tool(strict=True)(book), tool(name="loose")(lambda x=1: x)], Settings())

    strict, loose = (definition["function"] for definition in registry.definitions(["book", "loose"]))
    assert strict["strict"] is True
    assert strict["parameters"] == STRICT.parameters
    assert "strict" not in loose
    await registry.aclose()


def test_schema_that_names_itself_is_strict_too() -> None:
    def walk(tree: Tree) -> None: ...

    signature = read_signature(walk, "walk", is_strict=True)
    tree = {"name": "a", "children": [{"name": "b", "children": None}]}
    (given,) = signature.bind("walk", json.dumps({"tree": tree}), CONTEXT)[1].values()
    assert given == Tree(name="a", children=[Tree(name="b")])


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []
