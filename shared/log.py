"""Reading a run's log: pages of it, merged over the stages, after a cursor.

A page over several streams is one picture: the run's last id is taken first and bounds
every range, and is the reader's new position.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from shared import keys, sse
from shared.cursor import START, EventId, parse_id
from shared.errors import RunNotFound
from shared.events import TERMINAL_NAMES
from shared.runs import RUN_STAGE

# Of a stage that is read whole, so many events come at once.
STAGE_PAGE_EVENTS: Final = 10_000

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


class Page(NamedTuple):
    """A part of the log in order.

    `position` is where the reader stands after it; `is_last` says that this was the log's
    end when the page was read; `lost` is set where the cursor did not stand in the log
    and the page starts at the log's earliest event instead.
    """

    events: list[StoredEvent]
    position: EventId
    is_last: bool
    is_ended: bool
    lost: Lost | None = None

    def frames(self) -> bytes:
        """The page as SSE bytes."""
        frame = sse.FRAME  # not `sse.encode`: of a page of 500 events, calling it is a fifth of the time
        return b"".join([frame % (id_, event, data) for id_, _, event, data in self.events])


class Head(NamedTuple):
    """Where a run's log ends, whether for good, and its stages in order."""

    last_id: EventId
    is_ended: bool
    stage_ids: list[str]


async def read_head(redis: Redis, run_id: str, tenant: str | None = None) -> Head:
    """The end of the log.

    Args:
        tenant: whose the run has to be; None: anybody's.

    Raises:
        RunNotFound: no such run, or another tenant's.
    """
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hmget(keys.run(run_id), ["last_id", "finished_at", "tenant"])
        pipe.lrange(keys.stages(run_id), 0, -1)
        (last_id, finished_at, owner), stage_ids = await pipe.execute()
    if last_id is None or (tenant is not None and owner != tenant.encode()):
        raise RunNotFound(run_id)
    return Head(parse_id(last_id.decode()), bool(finished_at), [stage_id.decode() for stage_id in stage_ids])


async def read_last_ids(redis: Redis, run_ids: Sequence[str]) -> list[EventId | None]:
    """Where several logs end, in one round trip; None for a run that is gone, or whose record is none."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(keys.run(run_id), "last_id")
        return [_as_last_id(reply) for reply in await pipe.execute(raise_on_error=False)]


def _as_last_id(reply: bytes | Exception | None) -> EventId | None:
    # One bad record must not cost those that are asked for with it their answer.
    try:
        return parse_id(reply.decode()) if isinstance(reply, bytes) else None
    except ValueError:
        return None


async def read_page(
    redis: Redis, run_id: str, after: EventId, limit: int, *, stage_id: str | None = None, tenant: str | None = None
) -> Page:
    """The next page of the log, or of one stage's part of it.

    Every cursor is looked for, the position of the page before, too: the log may lose its
    tail between two pages, and no sign of that need come before the second.

    Args:
        after: the cursor; one that does not stand in the log gives a page from the start with `lost`.
        limit: events of each stream at the most.
        stage_id: only this stage's events, and the run's terminal one.
        tenant: whose the run has to be; None: anybody's.

    Raises:
        RunNotFound: no such run, or another tenant's.
    """
    head = await read_head(redis, run_id, tenant)
    stage_ids = [s for s in head.stage_ids if stage_id is None or s in (stage_id, RUN_STAGE)]
    stands, replies = await _read_after(redis, run_id, head, stage_ids, after, limit)
    lost = None
    if not stands:
        lost = Lost(after, await _read_earliest(redis, run_id, head), head.last_id)
        _, replies = await _read_after(redis, run_id, head, stage_ids, START, limit)
    events, bound = _merge(stage_ids, replies, limit)
    if stage_id not in (None, RUN_STAGE):
        events = [event for event in events if event.stage_id == stage_id or event.is_terminal]
    is_last = bound is None or bound == head.last_id
    return Page(events, bound or head.last_id, is_last, head.is_ended, lost)


async def read_stage(redis: Redis, run_id: str, stage_id: str) -> list[StoredEvent]:
    """A stage's whole stream; for stages of a bounded number of events."""
    events: list[StoredEvent] = []
    low = "-"
    while True:
        (reply,) = await _read_ranges(redis, run_id, [stage_id], low, "+", STAGE_PAGE_EVENTS)
        events += _decode(stage_id, reply)
        if len(reply) < STAGE_PAGE_EVENTS:
            return events
        low = f"({reply[-1][0].decode()}"


async def read_stage_ends(redis: Redis, run_id: str, stage_ids: Sequence[str]) -> list[tuple[StoredEvent, StoredEvent]]:
    """The first and the last event of each stage that has any: the run's retention may end just now."""
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in stage_ids:
            key = keys.stage_stream(run_id, stage_id)
            pipe.execute_command("XRANGE", key, "-", "+", "COUNT", 1)
            pipe.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        replies = await pipe.execute()
    ends = [_decode(stage_id, replies[2 * i] + replies[2 * i + 1]) for i, stage_id in enumerate(stage_ids)]
    return [(both[0], both[1]) for both in ends if both]


async def _read_ranges(
    redis: Redis, run_id: str, stage_ids: Iterable[str], low: str, high: str, limit: int
) -> list[list[Any]]:
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in stage_ids:
            pipe.execute_command("XRANGE", keys.stage_stream(run_id, stage_id), low, high, "COUNT", limit)
        replies: list[list[Any]] = await pipe.execute()
    return replies


async def _read_after(
    redis: Redis, run_id: str, head: Head, stage_ids: Sequence[str], after: EventId, limit: int
) -> tuple[bool, list[list[Any]]]:
    """Whether `after` stands in the log, and what each stage has after it: one round trip for both."""
    looked_through = [] if after in (START, head.last_id) else head.stage_ids
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in looked_through:
            pipe.execute_command("XRANGE", keys.stage_stream(run_id, stage_id), str(after), str(after), "COUNT", 1)
        for stage_id in stage_ids:
            key = keys.stage_stream(run_id, stage_id)
            pipe.execute_command("XRANGE", key, f"({after}", str(head.last_id), "COUNT", limit)
        replies: list[list[Any]] = await pipe.execute()
    found, ranges = replies[: len(looked_through)], replies[len(looked_through) :]
    return not looked_through or any(found), ranges


async def _read_earliest(redis: Redis, run_id: str, head: Head) -> EventId:
    firsts = await _read_ranges(redis, run_id, head.stage_ids, "-", "+", 1)
    return min((parse_id(first[0][0].decode()) for first in firsts if first), default=head.last_id)


def _decode(stage_id: str, reply: list[Any]) -> list[StoredEvent]:
    new = tuple.__new__  # what `StoredEvent(…)` does after a Python call, which doubles its time
    return [new(StoredEvent, (id_, stage_id, fields[1], fields[3])) for id_, fields in reply]


def _merge(
    stage_ids: Sequence[str], replies: Sequence[list[Any]], limit: int
) -> tuple[list[StoredEvent], EventId | None]:
    """The streams' ranges as one; the second value is set where the page ends before the log does."""
    # A range that came back full may go on; past its last id the other streams' events must wait.
    bounds = [parse_id(reply[-1][0].decode()) for reply in replies if len(reply) == limit]
    bound = min(bounds, default=None)
    parts = [_decode(stage_id, reply) for stage_id, reply in zip(stage_ids, replies, strict=True) if reply]
    if len(parts) == 1:
        return parts[0], bound
    keyed = [(event.event_id, event) for part in parts for event in part]
    keyed.sort(key=lambda pair: pair[0])
    if bound is not None or len(keyed) > limit:
        keyed = [pair for pair in keyed if bound is None or pair[0] <= bound][:limit]
        bound = keyed[-1][0]
    return [event for _, event in keyed], bound
