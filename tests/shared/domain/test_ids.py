"""Run ids: safe inside a key, and sorted by the time of creation."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.ids import created_ms, is_run_id, new_run_id

ULID = "01J9ZK3V7Q8E5W2R4T6Y8A0P1A"
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_fresh_id_is_one_and_holds_its_time() -> None:
    before_ms = int(time.time() * 1000)
    run_id = new_run_id()

    assert is_run_id(run_id)
    assert before_ms <= created_ms(run_id) <= time.time() * 1000


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(500)]

    assert len(set(ids)) == 500
    assert [created_ms(run_id) for run_id in sorted(ids)] == sorted(created_ms(run_id) for run_id in ids)


@pytest.mark.parametrize(
    "text",
    [
        "", "0", ULID[:-1], ULID + "A", ULID.lower(), "8" + ULID[1:], ULID[:-1] + "U", ULID[:-1] + "I", ULID[:-1] + "L",
        ULID[:-1] + "O", ULID + "\n", "\n" + ULID, " " + ULID, ULID[:-1] + "*", ULID[:-1] + "}", ULID[:-1] + "\u0130",
    ],
)  # fmt: skip
def test_invalid_run_id_is_refused(text: str) -> None:
    assert not is_run_id(text)


@given(st.one_of(st.text(alphabet=LETTERS, min_size=24, max_size=28), st.text(alphabet=string.printable, max_size=30)))
def test_valid_run_id_is_safe_in_a_key_and_contains_a_time(text: str) -> None:
    """With a brace, colon or star it could name other keys or another slot."""
    if is_run_id(text):
        assert set(text) <= set(LETTERS)
        assert 0 <= created_ms(text) < 2**48
    else:
        assert len(text) != 26 or text[0] > "7" or set(text) - set(LETTERS)
