import json
from collections import deque
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from stagebus.worker.tools.tool_results import ToolReply, cut, encode_result


class Place(BaseModel):
    name: str
    since: date


@dataclass
class Point:
    x: int


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ("plain text", "plain text"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        ({"a": [1, 2.5]}, '{"a":[1,2.5]}'),
        ({1: "a"}, '{"1":"a"}'),
        ((1, 2), "[1,2]"),
        ({3}, "[3]"),
        (deque([1]), "[1]"),
        (Place(name="Zürich", since=date(2020, 1, 2)), '{"name":"Zürich","since":"2020-01-02"}'),
        ([Place(name="a", since=date(2020, 1, 2))], '[{"name":"a","since":"2020-01-02"}]'),
        (Point(1), '{"x":1}'),
        (Colour.RED, '"red"'),
        (datetime(2020, 1, 2, 3, 4, tzinfo=UTC), '"2020-01-02T03:04:00+00:00"'),
        (Decimal("1.10"), '"1.10"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Path("/a"), '"/a"'),
        (b"bytes", '"bytes"'),
        (float("nan"), "null"),
        (10**30, str(10**30)),
    ],
)
def test_result_is_text_or_json(result, content):
    assert encode_result("f", result, 1000) == ToolReply(content)


def circle() -> list:
    items: list = []
    items.append(items)
    return items


class Sulky:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("result", "kind"), [(object(), "object"), (circle(), "list"), (Sulky(), "Sulky"), (b"\xff", "bytes")]
)
def test_result_without_json_form_is_an_error(result, kind):
    reply = encode_result("f", result, 1000)

    assert reply.is_error
    assert reply.content.startswith(f"f returned a value of type {kind}, which has no JSON form.")


def test_lone_surrogate_in_a_result_is_replaced():
    for result in ("a\ud83d", {"a": "\ud83d"}):
        encode_result("f", result, 1000).content.encode()


def test_long_result_is_cut_with_a_mark():
    reply = encode_result("f", "x" * 52428800, 65536)

    assert reply.content.endswith("… [cut: 52428800 bytes, limit 65536]")
    assert len(reply.content.encode()) == 65536


@given(text=st.text(alphabet="aä€😊", max_size=400), max_bytes=st.integers(256, 600))
def test_cut_fits_and_breaks_no_character(text, max_bytes):
    short = cut(text, max_bytes)

    assert len(short.encode()) <= max_bytes
    if len(text.encode()) <= max_bytes:
        assert short == text
    else:
        kept = short.partition("… [cut:")[0]
        assert text.startswith(kept)
        assert len(kept.encode()) > max_bytes - 60


def test_json_is_what_a_model_can_read():
    assert json.loads(encode_result("f", {"a": {"b": None}}, 1000).content) == {"a": {"b": None}}
