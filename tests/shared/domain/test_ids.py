"""Run ids: safe inside a key, and sorted by the time of creation."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain import ids
from stagebus.shared.domain.ids import created_ms, is_run_id, new_run_id, new_run_id_in
from stagebus.shared.domain.partitions import SLOTS, TAGS, key_slot, partition_of

ULID = "01J9ZK3V7Q8E5W2R4T6Y8A0P1A"
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_fresh_id_is_one_and_holds_its_time() -> None:
    before_ms = int(time.time() * 1000)
    run_id = new_run_id()

    assert is_run_id(run_id)
    assert before_ms <= created_ms(run_id) <= time.time() * 1000


def test_ids_are_unique_and_sort_by_time() -> None:
    run_ids = [new_run_id() for _ in range(500)]

    assert len(set(run_ids)) == 500
    assert [created_ms(run_id) for run_id in sorted(run_ids)] == sorted(created_ms(run_id) for run_id in run_ids)


@pytest.mark.parametrize("tag", TAGS)
def test_id_in_a_partition_is_a_run_id_with_its_time_and_hashes_to_the_tag(tag: str) -> None:
    before_ms = int(time.time() * 1000)
    run_ids = [new_run_id_in(tag) for _ in range(20)]

    assert all(is_run_id(run_id) and run_id.endswith(tag) for run_id in run_ids)
    assert {key_slot(run_id) for run_id in run_ids} == {key_slot(tag)}
    assert {partition_of(run_id) for run_id in run_ids} == {tag}
    assert all(before_ms <= created_ms(run_id) <= time.time() * 1000 for run_id in run_ids)


def test_two_chosen_pairs_reach_every_slot_in_more_than_forty_ways() -> None:
    """So an id exists for any time, any random characters and any tag."""
    firsts = {contribution for contribution, _ in ids._FIRST_PAIRS}
    seconds = ids._SECOND_PAIR.keys()
    ways = [sum(missing ^ second in firsts for second in seconds) for missing in range(0, SLOTS, 37)]

    assert len(firsts) == len(seconds) == 1024
    assert min(ways) > 40


def test_ids_in_a_partition_are_unique_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ULID's own randomness counts up within a millisecond, and would differ only in characters that are replaced."""
    fixed = ULID
    monkeypatch.setattr(ids, "ULID", lambda: fixed)

    run_ids = {new_run_id_in(TAGS[0]) for _ in range(5000)}
    assert len(run_ids) == 5000
    assert len({run_id[10:20] for run_id in run_ids}) == 5000
    assert {run_id[:10] for run_id in run_ids} == {fixed[:10]}


def test_id_without_a_partition_is_drawn_again_if_it_would_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [new_run_id_in(TAGS[3]), new_run_id_in(TAGS[0]), ULID]
    monkeypatch.setattr(ids, "ULID", lambda: drawn.pop(0))

    assert new_run_id() == ULID


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
