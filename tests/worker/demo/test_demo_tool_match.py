"""The demo model calls a user's tool that the prompt is about, with arguments that fit."""

import json

import pytest

from stagebus.worker.demo.demo_reply import reply_to
from stagebus.worker.demo.demo_script import DemoScript
from stagebus.worker.demo.demo_tool_match import write_arguments
from stagebus.worker.tools.signature import read_signature


def count_words(text: str, language: str = "en") -> int:
    """Count the words of a text.

    Args:
        text: what to count.
    """
    return len(text.split())


def order(item: str, amount: int, *, express: bool) -> str:
    """Send a purchase to the warehouse. Costs money."""
    return f"{amount} {item} {express}"


def lookUpUser(number: int) -> str:  # noqa: N802 - the case under test
    """Find a user."""
    return str(number)


FUNCTIONS = (count_words, order, lookUpUser)
SIGNATURES = {function.__name__: read_signature(function, function.__name__) for function in FUNCTIONS}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": of.description, "parameters": of.parameters}}
    for name, of in SIGNATURES.items()
]
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Look up the weather of a city."}}


@pytest.mark.parametrize(
    ("prompt", "calls"),
    [
        ('Please count the words: "one two three"', [("count_words", {"text": "one two three"})]),
        ("Count words: a b", [("count_words", {"text": "a b"})]),
        ("How many words? Use count_words for 'x y'.", [("count_words", {"text": "x y"})]),
        ("Send a purchase of 3 “pens” to the warehouse", [("order", {"item": "pens", "amount": 3, "express": True})]),
        ("Can you look up user 42?", [("lookUpUser", {"number": 42})]),
        ("Find this user", [("lookUpUser", {"number": 1})]),
        ("The words count", []),
        ("Send it to me", []),
        ("What is the weather in Oslo?", [("get_weather", {"city": "Oslo"})]),
    ],
)
def test_tool_is_called_if_the_prompt_has_its_name_or_its_description(prompt: str, calls: list) -> None:
    request = {"messages": [{"role": "user", "content": prompt}], "tools": [*TOOLS, WEATHER]}
    made = reply_to(request, DemoScript()).calls

    assert [(call.name, json.loads(call.arguments)) for call in made] == calls


@pytest.mark.parametrize("definition", TOOLS)
def test_arguments_are_valid_even_if_the_prompt_has_none(definition: dict) -> None:
    function = definition["function"]

    SIGNATURES[function["name"]].bind(function["name"], write_arguments(function, "do it"), None)


@pytest.mark.parametrize(
    "parameters",
    [None, [], {"required": "x"}, {"required": [1, "a"], "properties": {"a": {"$ref": "#/$defs/b"}}},
     {"required": ["a"], "properties": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}],
)  # fmt: skip
def test_schema_that_cannot_be_followed_does_no_harm(parameters: object) -> None:
    assert isinstance(json.loads(write_arguments({"parameters": parameters}, "do it")), dict)
