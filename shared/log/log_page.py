"""A page of a run's log: the entries of all stages, merged into one order. No I/O.

    stage:run         0-1  7-2                     7-7
    stage:extraction            7-3  7-4
    stage:synthesis                       7-5  7-6

A page is a list of slices; a slice is consecutive entries of one stage. Entries stay as the parser returns them,
`[id, [b"event", event, b"data", data]]`, since a replay sends them as they are: an object per entry would be a quarter
of its cost.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import TERMINAL_NAMES
from stagebus.shared.log import sse

_TERMINAL: Final = frozenset(name.encode() for name in TERMINAL_NAMES)


class StoredEvent(NamedTuple):
    """One entry as Redis stores it; `data` is one line of JSON."""

    id: bytes
    stage_id: str
    event: bytes
    data: bytes

    @property
    def event_id(self) -> EventId:
        """Returns the parsed id."""
        return parse_id(self.id.decode())

    @property
    def is_terminal(self) -> bool:
        """Returns whether the event ends the run."""
        return self.event in _TERMINAL


class LogGap(NamedTuple):
    """A cursor that the log does not have, and the first and last id that it has."""

    requested: EventId
    earliest: EventId
    latest: EventId


class StageSlice(NamedTuple):
    """Consecutive entries of one stage."""

    stage_id: str
    entries: list[Any]


class Page(NamedTuple):
    """Consecutive events of the log, in order.

    Attributes:
        position: the reader's cursor after this page.
        is_last: this page reached the end of the log at the time of the read.
        gap: set if the log does not have the cursor; the page then starts at the log's earliest event.
        stage_ids: the stages that the run had begun.
    """

    slices: list[StageSlice]
    position: EventId
    is_last: bool
    is_ended: bool
    gap: LogGap | None = None
    stage_ids: Sequence[str] = ()

    @property
    def event_count(self) -> int:
        """Returns the number of events."""
        return sum([len(stage_slice.entries) for stage_slice in self.slices])

    @property
    def events(self) -> list[StoredEvent]:
        """Returns the events as objects."""
        return [event for stage_slice in self.slices for event in decode(*stage_slice)]

    def frames(self, frame: bytes = sse.FRAME) -> bytes:
        """Returns the page as SSE bytes. Args: `frame`: the format of a frame, see `sse.FRAME`."""
        # Not `sse.encode`: the call would take a fifth of the time of a page of 500 events.
        return b"".join(
            [
                frame % (id_, event, data)
                for stage_slice in self.slices
                for id_, (_, event, _, data) in stage_slice.entries
            ]
        )


def decode(stage_id: str, entries: list[Any]) -> list[StoredEvent]:
    """Converts the entries of a stage, as the parser returns them, to events."""
    new = tuple.__new__  # as `StoredEvent(…)`, without the Python call that doubles its time
    return [new(StoredEvent, (id_, stage_id, fields[1], fields[3])) for id_, fields in entries]


def id_of(entry: Any) -> EventId:
    """Returns an entry's parsed id."""
    return parse_id(entry[0].decode())


def merge(slices: Iterable[StageSlice], after: EventId, limit: int) -> tuple[list[StageSlice], EventId | None]:
    """Merges the entries of all stages after the cursor.

    Args:
        slices: the entries of each stage from the cursor on, up to `limit` and one more; the first may be the cursor's
            own. The lists are modified.
        limit: the maximum number of entries of the page.

    Returns:
        The merged slices, and the id at which the page ends if the log continues.
    """
    bounds, kept = [], []
    for stage_slice in slices:
        is_full = len(stage_slice.entries) > limit
        if stage_slice.entries and after != START and id_of(stage_slice.entries[0]) == after:
            del stage_slice.entries[0]
        del stage_slice.entries[limit:]
        if is_full:
            bounds.append(
                id_of(stage_slice.entries[-1])
            )  # the stage may continue: events of other stages after this id go to the next page
        if stage_slice.entries:
            kept.append(stage_slice)
    bound = min(bounds, default=None)
    if len(kept) <= 1:
        return kept, bound
    if bound is not None:
        kept = [StageSlice(stage, entries[: bisect_right(entries, bound, key=id_of)]) for stage, entries in kept]
    merged: list[StageSlice] = []
    room = limit
    for stage, entries in _in_order(kept):
        if len(entries) > room:
            merged += [StageSlice(stage, entries[:room])] if room else []
            return merged, id_of(merged[-1].entries[-1])
        merged.append(StageSlice(stage, entries))
        room -= len(entries)
    return merged, bound


def _in_order(slices: Iterable[StageSlice]) -> Iterator[StageSlice]:
    """Yields the entries of all stages in the order of their ids."""
    rest = [stage_slice for stage_slice in slices if stage_slice.entries]
    while len(rest) > 1:
        rest.sort(key=lambda stage_slice: id_of(stage_slice.entries[0]))
        stage, entries = rest[0]
        end = bisect_left(entries, id_of(rest[1].entries[0]), key=id_of)
        yield StageSlice(stage, entries[:end])
        rest[0] = StageSlice(stage, entries[end:])
        if end == len(entries):
            del rest[0]
    yield from rest


def terminal_of(stage_slice: StageSlice) -> StageSlice:
    """Reduces the journal to the run's terminal event, if it has one."""
    return StageSlice(stage_slice.stage_id, [entry for entry in stage_slice.entries if entry[1][1] in _TERMINAL])
