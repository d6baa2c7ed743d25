"""A little of what `make fuzz` does much of."""

import pytest

from tests.support.fuzz import KINDS, fuzz


@pytest.mark.parametrize("name", KINDS)
def test_junk_is_refused_and_breaks_nothing(name: str) -> None:
    counts = fuzz(KINDS[name], examples=150, seed_=1)

    assert counts["refused"] > 20
