import functools
import json
from dataclasses import dataclass
from datetime import date
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NotRequired, Optional

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.signature import BadArguments, read_signature
from stagebus.worker.tools.tool_context import ToolContext

CONTEXT = ToolContext(run_id="r", call_id="c")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Guest(BaseModel):
    """Someone who comes."""

    name: str = Field(description="first name")
    title: str | None = None


def book(
    restaurant: str,
    guests: list[Guest],
    colour: Colour = Colour.RED,
    day: date | None = None,
    meal: Literal["lunch", "dinner"] = "dinner",
    stars: Annotated[int, Field(ge=1, le=5, description="of its own")] = 3,
    schema: str = "",
    anything=None,
) -> str:
    """Book a table.

    Args:
        restaurant: its name
        guests: who comes
        day: today if not given
    """
    return repr((restaurant, guests, colour, day, meal, stars, schema, anything))


def bind(function: Any, arguments: str) -> tuple[list, dict]:
    return read_signature(function, "book").bind("book", arguments, CONTEXT)


def test_schema_contains_all_of_the_signature():
    schema = read_signature(book, "book").parameters
    properties = schema["properties"]

    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["restaurant", "guests"]
    assert properties["restaurant"] == {"type": "string", "description": "its name"}
    assert properties["guests"] == {"type": "array", "items": {"$ref": "#/$defs/Guest"}, "description": "who comes"}
    assert properties["day"] == {
        "anyOf": [{"type": "string", "format": "date"}, {"type": "null"}],
        "default": None,
        "description": "today if not given",
    }
    assert properties["meal"] == {"type": "string", "enum": ["lunch", "dinner"], "default": "dinner"}
    assert properties["stars"] == {
        "type": "integer", "minimum": 1, "maximum": 5, "default": 3, "description": "of its own",
    }  # fmt: skip
    assert schema["$defs"]["Colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert schema["$defs"]["Guest"]["properties"]["name"] == {"type": "string", "description": "first name"}
    assert "title" in schema["$defs"]["Guest"]["properties"]


def test_schema_of_nothing_is_an_empty_object():
    assert read_signature(lambda: 1, "f").parameters == {
        "type": "object", "properties": {}, "additionalProperties": False,
    }  # fmt: skip


def test_arguments_become_what_the_function_expects():
    _, named = bind(book, '{"restaurant": "a", "guests": [{"name": "Ann"}], "colour": "blue", "day": "2020-01-02"}')

    assert named == {
        "restaurant": "a",
        "guests": [Guest(name="Ann")],
        "colour": Colour.BLUE,
        "day": date(2020, 1, 2),
        "meal": "dinner",
        "stars": 3,
        "schema": "",
        "anything": None,
    }


def test_arguments_are_what_the_schema_allows():
    arguments = {"restaurant": "a", "guests": [{"name": "Ann"}], "stars": 5, "anything": [1]}

    Draft202012Validator(read_signature(book, "book").parameters).validate(arguments)


@pytest.mark.parametrize("nothing", ["", " ", "null", "{}", "\n"])
def test_no_arguments_are_an_empty_object(nothing):
    assert bind(lambda day=1: day, nothing) == ([], {"day": 1})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", ["cannot be read as JSON"]),
        ('{"restaurant": NaN}', ["cannot be read as JSON"]),
        ('{"restaurant": "\\ud83d"}', ["cannot be read as JSON"]),
        ("[1]", ["must be a JSON object"]),
        ('"text"', ["must be a JSON object"]),
        ("{}", ["- restaurant: Field required", "- guests: Field required"]),
        ('{"restaurant": 1, "guests": [{}], "stars": 9, "colour": "x", "more": 1}', [
            "- restaurant: Input should be a valid string (given: 1)",
            "- guests.0.name: Field required",
            "- stars: Input should be less than or equal to 5 (given: 9)",
            "- colour: Input should be 'red' or 'blue' (given: 'x')",
            "- more: Extra inputs are not permitted (given: 1)",
        ]),
    ],
)  # fmt: skip
def test_invalid_arguments_are_reported_for_each_field(arguments, words):
    with pytest.raises(BadArguments) as failure:
        bind(book, arguments)

    assert all(word in str(failure.value) for word in words)


@pytest.mark.parametrize("levels", [220, 600, 5000])
@pytest.mark.parametrize("is_strict", [False, True])
def test_deep_arguments_are_invalid(levels, is_strict):
    """Three parsers see them, each with a limit of its own."""

    def f(x: str = "") -> str:
        return x

    signature = read_signature(f, "f", is_strict=is_strict)
    with pytest.raises(BadArguments):
        signature.bind("f", f'{{"x": {"[" * levels}{"]" * levels}}}', ToolContext(run_id="r", call_id="c"))


def test_error_of_many_fields_has_an_end():
    with pytest.raises(BadArguments) as failure:
        bind(lambda x: x, "{" + ",".join(f'"k{i}": "{"v" * 500}"' for i in range(500)) + "}")

    assert len(str(failure.value)) < 5000
    assert "more" in str(failure.value)


def test_infinity_is_no_number():
    def f(x: float) -> float:
        return x

    with pytest.raises(BadArguments):
        bind(f, '{"x": 1e999}')


def test_positional_parameters_are_given_by_position():
    def f(a: int, /, b: int) -> int:
        return a + b

    assert bind(f, '{"b": 2, "a": 1}') == ([1], {"b": 2})


def test_names_that_pydantic_uses_are_free():
    def f(model_config: int, copy: int, json: int, _private: int = 1) -> int:
        return model_config + copy + json + _private

    _, named = bind(f, '{"model_config": 1, "copy": 2, "json": 3}')
    assert f(**named) == 7


def test_default_that_json_cannot_say_is_left_out():
    missing = object()

    def f(x: Any = missing) -> object:
        return x

    assert read_signature(f, "f").parameters["properties"] == {"x": {}}
    assert bind(f, "")[1] == {"x": missing}


def test_methods_and_partials_are_functions_too():
    class Desk:
        def book(self, n: int) -> int:
            """Book."""
            return n

    assert read_signature(Desk().book, "book").description == "Book."
    assert bind(Desk().book, '{"n": 1}') == ([], {"n": 1})
    assert bind(functools.partial(book, restaurant="a"), '{"guests": []}')[1]["restaurant"] == "a"


def spread(*names: str) -> None: ...
def keywords(**more: int) -> None: ...
def foreign(x: pytest.Config) -> None: ...


@pytest.mark.parametrize("function", [spread, keywords, foreign, print])
def test_function_without_a_schema_is_a_bad_tool(function):
    with pytest.raises(BadTool, match="'odd'"):
        read_signature(function, "odd")


def test_type_hints_as_text_are_read():
    def f(x: "int", y: "date | None" = None) -> "str":
        return f"{x} {y}"

    def g(x: "NoSuchThing") -> None: ...  # noqa: F821

    assert bind(f, '{"x": 1, "y": "2020-01-02"}')[1]["y"] == date(2020, 1, 2)
    with pytest.raises(BadTool, match="NoSuchThing"):
        read_signature(g, "g")


def test_context_is_given_and_the_model_sees_nothing_of_it():
    def f(context: ToolContext, x: int, /, *, more: "ToolContext | None" = None) -> None: ...

    assert list(read_signature(f, "f").parameters["properties"]) == ["x"]
    assert bind(f, '{"x": 1}') == ([CONTEXT, 1], {"more": CONTEXT})
    with pytest.raises(BadArguments, match="context: Extra"):
        bind(f, '{"x": 1, "context": {}}')


@dataclass
class Point:
    x: int
    y: int = 0


class Options(TypedDict):
    deep: bool
    limit: NotRequired[int]


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    ("hint", "given", "got", "refused"),
    [
        (Point, {"x": 1}, Point(1, 0), {"y": 1}),
        (Options, {"deep": True}, {"deep": True}, {"deep": True, "more": 1}),
        (Level, 1, Level.LOW, 2),
        (Optional[int], None, None, "x"),  # noqa: UP045 - people write it
        (tuple[int, str], [1, "a"], (1, "a"), [1]),
        (set[int], [1, 2], {1, 2}, ["a"]),
        (dict[str, Point], {"a": {"x": 1}}, {"a": Point(1)}, {"a": 1}),
        (list[Point | Level], [{"x": 1}, 1], [Point(1), Level.LOW], [2]),
    ],
    ids=str,
)
def test_types_are_those_that_people_write(hint: Any, given: Any, got: Any, refused: Any):
    def f(x) -> None: ...

    f.__annotations__["x"] = hint
    schema = read_signature(f, "f").parameters
    Draft202012Validator(schema).validate({"x": given})
    assert bind(f, json.dumps({"x": given}))[1] == {"x": got}
    with pytest.raises(BadArguments, match="x"):
        bind(f, json.dumps({"x": refused}))
