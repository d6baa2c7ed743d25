"""A page of the stages' entries equals that of a plain sort, for any entries and any end of the page."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.log import sse
from stagebus.shared.log.log_page import Page, StageSlice, merge

STAGES = ("run", "extraction", "tools", "synthesis")


def entry(event_id: EventId, event: bytes = b"tool_call") -> Any:
    """As the parser gives it."""
    return [str(event_id).encode(), [b"event", event, b"data", b'{"id":"%s"}' % str(event_id).encode()]]


def log_of(owners: list[str]) -> list[tuple[EventId, str]]:
    """An event for each, of the stage that is named; attempts change now and then."""
    return [(EventId(number // 3, number), stage) for number, stage in enumerate(owners, 1)]


def ask(log: list[tuple[EventId, str]], after: EventId, limit: int) -> list[StageSlice]:
    """Returns Redis's replies: per stage the entries from the cursor on, at most one more than the limit."""
    return [
        StageSlice(
            stage, [entry(event_id) for event_id, owner in log if owner == stage and event_id >= after][: limit + 1]
        )
        for stage in STAGES
    ]


@given(st.lists(st.sampled_from(STAGES), min_size=1, max_size=30), st.integers(0, 30), st.integers(1, 12))
def test_slices_are_the_log_after_the_cursor(owners: list[str], seen: int, limit: int) -> None:
    log = log_of(owners)
    after = START if seen == 0 else log[min(seen, len(log)) - 1][0]
    rest = [event for event in log if event[0] > after]

    parts, bound = merge(ask(log, after, limit), after, limit)

    page = Page(parts, bound or log[-1][0], is_last=bound is None, is_ended=False)
    found = [(event.event_id, event.stage_id) for event in page.events]
    assert found == rest[: len(found)]
    assert page.event_count == len(found) <= limit
    if bound is None:
        assert found == rest
    else:
        assert found[-1][0] == bound, "the reader continues after the last event that it received"
    assert page.frames() == b"".join(sse.encode(event.id, event.event, event.data) for event in page.events)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_full_page_of_one_stage_ends_at_its_last_entry(limit: int) -> None:
    log = log_of(["extraction"] * 9)
    parts, bound = merge(ask(log, log[2][0], limit), log[2][0], limit)

    assert [len(part.entries) for part in parts] == [limit]
    assert bound == log[2 + limit][0]


def test_alternating_stages_give_one_slice_per_change() -> None:
    """A page of a run that has ended: its journal begins and ends it, and what is between stays whole."""
    log = log_of(["run", "run", *["extraction"] * 40, *["synthesis"] * 40, "run"])
    parts, _ = merge(ask(log, START, 100), START, 100)

    assert [(part.stage_id, len(part.entries)) for part in parts] == [
        ("run", 2), ("extraction", 40), ("synthesis", 40), ("run", 1)
    ]  # fmt: skip
