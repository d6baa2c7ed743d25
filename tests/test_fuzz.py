"""Fuzzing of every parser, with few inputs; `make fuzz` uses many."""

import pytest

from tests.support.fuzz import KINDS, fuzz


@pytest.mark.parametrize("name", KINDS)
def test_parser_refuses_junk_with_its_own_error(name: str) -> None:
    counts = fuzz(KINDS[name], examples=150, seed_=1)

    assert counts["refused"] > 20
