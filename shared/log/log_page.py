"""A page of a run's log: what Redis gave of each stage, put into one order. No I/O.

    stage:run         0-1  7-2                     7-7
    stage:extraction            7-3  7-4
    stage:synthesis                       7-5  7-6

A page is a list of parts, each of one stage's entries that follow one another. Entries stay as
the parser gave them, `[id, [b"event", event, b"data", data]]`, since a replay sends them as they are:
an object for each would be a quarter of its cost.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import TERMINAL_NAMES
from stagebus.shared.log import sse

_TERMINAL: Final = frozenset(name.encode() for name in TERMINAL_NAMES)


class StoredEvent(NamedTuple):
    """One entry as Redis keeps it; `data` is a line of JSON."""

    id: bytes
    stage_id: str
    event: bytes
    data: bytes

    @property
    def event_id(self) -> EventId:
        """The id, parsed."""
        return parse_id(self.id.decode())

    @property
    def is_terminal(self) -> bool:
        """Whether the run ends with it."""
        return self.event in _TERMINAL


class Lost(NamedTuple):
    """A cursor that does not stand in the log, and what the log has."""

    requested: EventId
    earliest: EventId
    latest: EventId


class Part(NamedTuple):
    """Entries of one stage that follow one another."""

    stage_id: str
    entries: list[Any]


class Page(NamedTuple):
    """A part of the log in order.

    `position` is where the reader stands after it; `is_last` says that this was the log's
    end when the page was read; `lost` is set where the cursor did not stand in the log
    and the page starts at the log's earliest event instead. `stage_ids` are those that the run had begun.
    """

    parts: list[Part]
    position: EventId
    is_last: bool
    is_ended: bool
    lost: Lost | None = None
    stage_ids: Sequence[str] = ()

    @property
    def event_count(self) -> int:
        """How many events it has."""
        return sum([len(part.entries) for part in self.parts])

    @property
    def events(self) -> list[StoredEvent]:
        """Its events, one by one."""
        return [event for part in self.parts for event in decode(*part)]

    def frames(self) -> bytes:
        """The page as SSE bytes."""
        frame = sse.FRAME  # not `sse.encode`: of a page of 500 events, calling it is a fifth of the time
        return b"".join(
            [frame % (id_, event, data) for part in self.parts for id_, (_, event, _, data) in part.entries]
        )


def decode(stage_id: str, entries: list[Any]) -> list[StoredEvent]:
    """Entries of a stage, as the parser gave them, one by one."""
    new = tuple.__new__  # what `StoredEvent(…)` does after a Python call, which doubles its time
    return [new(StoredEvent, (id_, stage_id, fields[1], fields[3])) for id_, fields in entries]


def id_of(entry: Any) -> EventId:
    """An entry's id, parsed."""
    return parse_id(entry[0].decode())


def merge(parts: Iterable[Part], after: EventId, limit: int) -> tuple[list[Part], EventId | None]:
    """The stages' entries after the cursor as one; the second value is set where the page ends before the log does.

    Args:
        parts: of each stage what follows the cursor, one entry more than `limit` where there is so much; the
            cursor's own may stand before. They are used up.
        limit: entries of the page at the most.
    """
    bounds, kept = [], []
    for part in parts:
        is_full = len(part.entries) > limit
        if part.entries and after != START and id_of(part.entries[0]) == after:
            del part.entries[0]
        del part.entries[limit:]
        if is_full:
            bounds.append(id_of(part.entries[-1]))  # the stage may go on; past this id the others' events must wait
        if part.entries:
            kept.append(part)
    bound = min(bounds, default=None)
    if len(kept) <= 1:
        return kept, bound
    if bound is not None:
        kept = [Part(stage, entries[: bisect_right(entries, bound, key=id_of)]) for stage, entries in kept]
    merged: list[Part] = []
    room = limit
    for stage, entries in _in_order(kept):
        if len(entries) > room:
            merged += [Part(stage, entries[:room])] if room else []
            return merged, id_of(merged[-1].entries[-1])
        merged.append(Part(stage, entries))
        room -= len(entries)
    return merged, bound


def _in_order(parts: Iterable[Part]) -> Iterator[Part]:
    """The entries of several stages in the order of their ids."""
    rest = [part for part in parts if part.entries]
    while len(rest) > 1:
        rest.sort(key=lambda part: id_of(part.entries[0]))
        stage, entries = rest[0]
        end = bisect_left(entries, id_of(rest[1].entries[0]), key=id_of)
        yield Part(stage, entries[:end])
        rest[0] = Part(stage, entries[end:])
        if end == len(entries):
            del rest[0]
    yield from rest


def terminal_of(part: Part) -> Part:
    """Of the journal, the run's last event, if it is there."""
    return Part(part.stage_id, [entry for entry in part.entries if entry[1][1] in _TERMINAL])
