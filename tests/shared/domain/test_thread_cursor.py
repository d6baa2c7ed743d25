"""Cursors of a thread's stream: what a client may send, and that an id survives its text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.thread_cursor import (
    THREAD_CURSOR_PATTERN,
    THREAD_START,
    ThreadCursor,
    parse_thread_cursor,
)
from stagebus.shared.errors import BadCursor
from tests.shared.domain.test_cursor import event_ids

RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"
nearly = st.text(alphabet="0123456789-. \nA", max_size=12).map(lambda text: RUN + text)


@given(event_ids)
def test_id_survives_its_text(event_id: EventId) -> None:
    cursor = ThreadCursor(RUN, event_id)

    assert parse_thread_cursor(str(cursor)) == cursor


@given(st.one_of(st.text(), nearly))
def test_any_text_is_a_cursor_or_a_bad_cursor(text: str) -> None:
    try:
        cursor = parse_thread_cursor(text)
    except BadCursor:
        assert not re.match(THREAD_CURSOR_PATTERN, text) or text.endswith("\n")
        return

    assert cursor == THREAD_START or (str(cursor) == text.strip(" ") and ids.is_run_id(cursor.run_id))


@pytest.mark.parametrize("text", [None, "", " ", "0", "-1", "0-0"])
def test_words_for_the_start(text: str | None) -> None:
    assert parse_thread_cursor(text) == THREAD_START


@pytest.mark.parametrize("text", ["5204-118", RUN, f"{RUN}.", f"{RUN}.0", f"{RUN}. 5-1", f"{RUN}.5-0", f"x{RUN}.5-1"])
def test_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        parse_thread_cursor(text)
