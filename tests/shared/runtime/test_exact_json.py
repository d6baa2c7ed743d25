"""Exact parsing of JSON."""

import pytest

from stagebus.shared.runtime.exact_json import parse_json


def test_integers_of_any_size_are_kept() -> None:
    assert parse_json('{"n": 123456789012345678901234567891}') == {"n": 123456789012345678901234567891}


@pytest.mark.parametrize(
    "text", ["NaN", '"\\ud800"', "", "[1,]", "1e999", "[" * 100_000, "[" * 1000 + "]" * 1000, "9" * 5000]
)
def test_everything_else_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several parsers
        parse_json(text)
