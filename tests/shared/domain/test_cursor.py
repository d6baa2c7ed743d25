"""Event ids and cursors: what a client may send, and that an id survives its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.cursor import START, EventId, parse_cursor, parse_id
from stagebus.shared.errors import BadCursor

PART_MAX = 10**15 - 1
event_ids = st.builds(EventId, st.integers(0, PART_MAX), st.integers(1, PART_MAX))
# Texts that are nearly cursors: plain random ones hardly ever are.
nearly = st.text(alphabet="0123456789-+_. \n\t٣²\u2212", max_size=12)


@given(event_ids)
def test_id_survives_its_text(event_id: EventId) -> None:
    assert parse_id(str(event_id)) == event_id
    assert parse_cursor(str(event_id)) == event_id


@given(st.one_of(st.text(), nearly, event_ids.map(str)))
def test_any_text_is_a_cursor_or_a_bad_cursor(text: str) -> None:
    try:
        cursor = parse_cursor(text)
    except BadCursor:
        return

    assert cursor == START or str(cursor) == text.strip(" ")


@pytest.mark.parametrize("text", [None, "", "  ", "0", " 0 ", "-1", "0-0"])
def test_words_for_the_start(text: str | None) -> None:
    assert parse_cursor(text) == START


@pytest.mark.parametrize(
    "text",
    [
        "x", "-", "5", "00", "-2", "--1", "5-", "-5", "5-0", "05-1", "5-01", "5-1-1", "5- 1", "5 -1", "+5-1", "5-+1",
        "5-1\n", "\n5-1", "\t5-1", "5_0-1", "٣-٣", "5\u22121", "5.0-1", "0x5-1", "5-1,5-2", "$", "*", "5-*", "(5-1", "null",
        "1234567890123456-1", "1-1234567890123456", "9" * 10_000,
    ],
)  # fmt: skip
def test_junk_is_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        parse_cursor(text)


@pytest.mark.parametrize("text", ["", "5", "a-b", "5-", "-5", "5-1-1"])
def test_invalid_event_id_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"event id|int\(\)"):
        parse_id(text)
