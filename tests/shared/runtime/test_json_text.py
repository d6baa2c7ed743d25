"""JSON as people see it: exact, complete and free of controls."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from stagebus.shared.runtime.json_text import duplicate_keys, json_line, pretty_json
from tests.support.needs import skip_or_fail

PAGE = Path(__file__).parents[3] / "gateway" / "static" / "json_text.js"
SAMPLES = [
    '{"amount": 1, "amount": 9007199254740993, "rate": 1.10, "id": 123456789012345678901234567890}',
    '{"city":"Paris","days":[],"more":{}}',
    json.dumps({"list": [1, [2, {"a": "b" * 40}], [], {}], "text": 'quote " brace } comma , \\ '}),
    '[{"a": {"b": 1, "\\u0062": 2}}, {"a": 1}, "a", "a"]', '{"a": "a", "b": ["a", "a"]}',
    '{"to": "\\u0061lice\u202e\\u202e\u200b\\ud800", "x": "\\u001b[2J\x7f\\/"}',
]  # fmt: skip


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
    assert pretty_json('{"to": "\\u0061lice\u202e\\u202e\u200b"}') == r'{ "to": "alice\u202e\u202e\u200b" }'
    assert pretty_json('{"x": "\\u001b[2J\x7f"}') == r'{ "x": "\u001b[2J\u007f" }'


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


def test_page_shows_the_same(tmp_path: Path) -> None:
    """Its functions are written in JavaScript a second time."""
    if shutil.which("node") is None:
        skip_or_fail("node")
    # Of blocks without new characters: the two runtimes know different versions of Unicode.
    blanks = (0x34F, 0x115F, 0x17B4, 0x180B, 0x2800, 0x3164, 0xFE00, 0xFE0F, 0xFFA0, 0xE0100, 0xE01EF)
    characters = "".join(map(chr, (*range(0x250), *range(0x2000, 0x2065), 0xFEFF, 0xFFF9, 0xE0041, *blanks)))
    texts = [*SAMPLES, json.dumps({"x": characters}, ensure_ascii=False), json.dumps({"x": characters}), "plain \u202e"]
    program = (
        f"import {{ pretty, duplicateKeys }} from {json.dumps(str(PAGE))};"
        "let text = ''; for await (const part of process.stdin.setEncoding('utf8')) text += part;"
        "console.log(JSON.stringify(JSON.parse(text).map((one) => [pretty(one), duplicateKeys(one)])));"
    )
    command = ["node", "--input-type=module", "-e", program]
    shown = json.loads(
        subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True).stdout
    )

    assert shown == [[pretty_json(text), duplicate_keys(text)] for text in texts]
