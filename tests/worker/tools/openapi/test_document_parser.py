import json
import time
import tracemalloc

import pytest
import yaml

from stagebus.shared.errors import BadTool
from stagebus.worker.tools.openapi import document_parser
from stagebus.worker.tools.openapi.document_parser import parse_document

HEAD = "openapi: 3.1.0\n"


def parsed(text: str):
    return parse_document(f"{HEAD}x:\n  {text}\n".encode())["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[NO, SE, on, off, yes, y, 2024-01-01, 12:30:45, 1_000, .inf, .nan, 0b1]",
         ["NO", "SE", "on", "off", "yes", "y", "2024-01-01", "12:30:45", "1_000", ".inf", ".nan", "0b1"]),
        ("[true, False, null, ~, '', 'null', \"1\", !!str 5, ! 6, !!int 7]",
         [True, False, None, None, "", "null", "1", "5", "6", 7]),
        ("[-5, +5, 007, 0o17, 0xff, 1.0, .5, 1e3, 1., -1e-3, 1e999]",
         [-5, 5, 7, 15, 255, 1.0, 0.5, 1000.0, 1.0, -0.001, "1e999"]),
        ("[9223372036854775807, 18446744073709551615, -9223372036854776000, 99999999999999999999999]",
         [2**63 - 1, float(2**64), -9.223372036854776e18, 1e23]),
        ("{on: 1, 200: 2, null: 3, 1.5: 4, 2024-01-01: 5}", {"on": 1, "200": 2, "null": 3, "1.5": 4, "2024-01-01": 5}),
        ("[&a {b: &c [1]}, *a, *c, {d: *a}]", [{"b": [1]}, {"b": [1]}, [1], {"d": {"b": [1]}}]),
        ("[&a {b: 1, c: 1}, &d {b: 2, e: 2}, {<<: *a, c: 3}, {<<: [*a, *d]}, {'<<': 1}]",
         [{"b": 1, "c": 1}, {"b": 2, "e": 2}, {"b": 1, "c": 3}, {"b": 1, "c": 1, "e": 2}, {"<<": 1}]),
        ("{&k a: 1, b: *k, *k : 2}", {"a": 2, "b": "a"}),
        ("", None),
        ("|\n    a\n    %TAG ! x", "a\n%TAG ! x\n"),
    ],
)  # fmt: skip
def test_yaml_has_the_words_of_version_1_2(text, value):
    assert parsed(text) == value
    json.dumps(parsed(text), allow_nan=False)


def test_yaml_1_2_and_json_are_one():
    document = {
        "openapi": "3.0.3",
        "paths": {"/a": {"get": {"x": [1, -2.5, None, True, "é", "NO", ""]}}},
        "b": [],
        "c": {},
    }

    assert parse_document(json.dumps(document).encode()) == document
    assert parse_document(yaml.safe_dump(document).encode()) == document
    assert parse_document(b"\xef\xbb\xbf" + json.dumps(document, indent=1).encode()) == document
    assert parse_document(b"# a\n%YAML 1.2\n---\nopenapi: 3.1.0\n...\n---\n[") == {"openapi": "3.1.0"}


def chained(first: str, link: str) -> str:
    """Returns anchors of which each stands for ten of the one before."""
    return f"a0: &a0 {first}\n" + "".join(
        f"a{i}: &a{i} {link.replace('@', ', '.join([f'*a{i - 1}'] * 10))}\n" for i in range(1, 12)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("{a: " * 100_000, "nested deeper than 100 levels"),
        ("\n".join(" " * i + "a:" for i in range(2000)), "nested deeper than 100 levels"),
        ("- " * 10_000, "nested deeper than 100 levels"),
        (HEAD + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" if i else "a0: &a0 []\n" for i in range(200)), "nested deeper"),
        (HEAD + chained("[x]", "[@]"), "expands to more than"),
        (HEAD + chained("{k: x}", "{k: [@]}"), "expands to more than"),
        (HEAD + chained("{k: x}", "{<<: [@]}"), "expands to more than"),
        (HEAD + f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]", "expands to more than"),
        (HEAD + "a: &a [*a]", "refers to nothing before it"),
        (HEAD + "a: &a [1]\nb: &a [*a]", "refers to nothing before it"),
        (HEAD + "a: *b", "refers to nothing before it"),
        (HEAD + "a: {<<: [1]}", "<< needs a mapping"),
        (HEAD + "{a: 1}: 2", "a key is not text"),
        (HEAD + "? [a]\n: 2", "a key is not text"),
        ("".join(f"%TAG !{i}! a\n" for i in range(50_000)) + f"---\n{HEAD}", "YAML directives"),
        ("# a\n%YAML 1.2\n%TAG ! a\n---\n" + HEAD, "YAML directives"),
        (f"{HEAD}...\n%TAG ! a\n", "YAML directives"),
        ("\0", "neither JSON nor YAML"),
        (f"'{HEAD}' x", "neither JSON nor YAML"),
        ("a: b: c", "neither JSON nor YAML"),
        ("", "not OpenAPI 3"),
        ("openapi: 2.0", "not OpenAPI 3"),
        ("- openapi", "not OpenAPI 3"),
    ],
)  # fmt: skip
def test_hostile_document_is_refused_at_little_cost(text, words):
    began = time.thread_time()

    with pytest.raises(BadTool, match=words):
        parse_document(text.encode())
    assert time.thread_time() - began < 1


def test_text_that_is_not_utf_8_is_refused():
    with pytest.raises(BadTool, match="neither JSON nor YAML"):
        parse_document(HEAD.encode("utf-16"))


def test_aliases_take_no_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(document_parser, "EXPANDED_MAX", 2**22)
    tracemalloc.start()
    with pytest.raises(BadTool, match="expands to more than"):
        parse_document(f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 10_000)}]".encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2**22
