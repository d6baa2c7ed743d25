"""JSON as people see it: exact, complete and free of controls."""

import json

import pytest

from stagebus.shared.runtime.json_text import duplicate_keys, json_line, pretty_json


def test_numbers_and_duplicate_keys_stay_as_written() -> None:
    text = '{"amount": 1, "amount": 9007199254740993, "rate": 1.10, "big": 1e400, "id": 123456789012345678901234567890}'

    assert pretty_json(text).split("\n") == [
        "{",
        '  "amount": 1,',
        '  "amount": 9007199254740993,',
        '  "rate": 1.10,',
        '  "big": 1e400,',
        '  "id": 123456789012345678901234567890',
        "}",
    ]
    assert duplicate_keys(text) == ["amount"]


def test_short_json_is_one_line() -> None:
    assert pretty_json('{"city":"Paris","days":[],"more":{}}') == '{ "city": "Paris", "days": [], "more": {} }'


def test_nested_json_is_indented() -> None:
    value = {"list": [1, [2, {"a": "b" * 40}]], "empty": {}, "text": 'quote " brace } comma , \\ '}

    assert pretty_json(json.dumps(value)) == json.dumps(value, indent=2)


def test_controls_and_hidden_letters_become_visible() -> None:
    shown = pretty_json('{"to": "\\u0061lice\u202e\\u202e\u200b", "x": "\\u001b[2J\x7f"}')

    assert shown == r'{ "to": "alice\u202e\u202e\u200b", "x": "\u001b[2J\u007f" }'


@pytest.mark.parametrize("text", ["", "plain", '{"a": ', "7", "[" * 100_000])
def test_other_text_stays(text: str) -> None:
    assert pretty_json(text) == text
    assert duplicate_keys(text) == []


def test_other_text_shows_its_controls() -> None:
    assert pretty_json("a\nb\x1b\u202e") == "a\nb\\u001b\\u202e"


def test_duplicates_are_found_at_every_depth_by_their_meaning() -> None:
    assert duplicate_keys('[{"a": {"b": 1, "\\u0062": 2}}, {"a": 1}]') == ["b"]
    assert duplicate_keys('{"a": 1, "b": {"a": 1}}') == []


@pytest.mark.parametrize("value", [{"a": "\x9b\u202e\x7f\u2028\ud800é日"}, {"n": 10**30, "f": 1.5}, [None, True]])
def test_json_line_is_printable_and_means_the_same(value: object) -> None:
    line = json_line(value)

    assert line.isprintable()
    assert json.loads(line) == value
