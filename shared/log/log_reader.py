"""Reading a run's log: pages of it, merged over the stages, after a cursor.

A page over several streams is one picture, read in one transaction: the run's last id, which is
the reader's new position, and the streams up to it.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log.log_page import Lost, Page, Part, StoredEvent, decode, merge, terminal_of
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import Command, ReadConnection, read_at_once
from stagebus.shared.storage.redis_client import Redis

# Of a stage that is read whole, so many events come at once.
STAGE_PAGE_EVENTS: Final = 10_000


class Head(NamedTuple):
    """Where a run's log ends, whether for good, and its stages in order."""

    last_id: EventId
    is_ended: bool
    stage_ids: list[str]


async def read_head(connection: ReadConnection, run_id: str, tenant: str | None = None) -> Head:
    """The end of the log.

    Args:
        tenant: whose the run has to be; None: anybody's.

    Raises:
        RunNotFound: no such run, or another tenant's.
    """
    return _head(run_id, tenant, await read_at_once(connection, _ask_head(run_id)))


def _ask_head(run_id: str) -> list[Command]:
    return [("HMGET", keys.run(run_id), "last_id", "finished_at", "tenant"), ("LRANGE", keys.stages(run_id), 0, -1)]


def _head(run_id: str, tenant: str | None, replies: Sequence[Any]) -> Head:
    (last_id, finished_at, owner), stage_ids = replies
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
    connection: ReadConnection,
    run_id: str,
    after: EventId,
    limit: int,
    *,
    stage_id: str | None = None,
    tenant: str | None = None,
    stage_ids: Sequence[str] = (),
) -> Page:
    """The next page of the log, or of one stage's part of it.

    Every cursor is looked for, the position of the page before, too: the log may lose its
    tail between two pages, and no sign of that need come before the second.

    Args:
        after: the cursor; one that does not stand in the log gives a page from the start with `lost`.
        limit: events of each stream at the most.
        stage_id: only this stage's events, and the run's terminal one.
        tenant: whose the run has to be; None: anybody's.
        stage_ids: the stages that the run had begun, as far as is known: where no other began, the
            page takes one round trip.

    Raises:
        RunNotFound: no such run, or another tenant's.
    """
    wanted = None if stage_id is None else {stage_id, RUN_STAGE}
    head, replies = await _read_picture(connection, run_id, tenant, stage_ids, wanted, after, limit)
    lost = None
    if after not in (START, head.last_id) and not any(reply and reply[0][0] == b"%d-%d" % after for reply in replies):
        requested, after = after, START
        head, replies = await _read_picture(connection, run_id, tenant, head.stage_ids, wanted, after, limit)
        firsts = [parse_id(reply[0][0].decode()) for reply in replies if reply]
        lost = Lost(requested, min(firsts, default=head.last_id), head.last_id)
    parts = [Part(*part) for part in zip(head.stage_ids, replies, strict=True) if wanted is None or part[0] in wanted]
    parts, bound = merge(parts, after, limit)
    if stage_id not in (None, RUN_STAGE):
        parts = [part if part.stage_id == stage_id else terminal_of(part) for part in parts]
    is_last = bound is None or bound == head.last_id
    return Page(parts, bound or head.last_id, is_last, head.is_ended, lost, head.stage_ids)


async def _read_picture(
    connection: ReadConnection,
    run_id: str,
    tenant: str | None,
    stage_ids: Sequence[str],
    wanted: Collection[str] | None,
    after: EventId,
    limit: int,
) -> tuple[Head, list[list[Any]]]:
    """The log's end, and what each of its stages has from `after` on, at one moment.

    The cursor's own event comes, too, out of the stage in which it stands: so it is looked for
    in the stages that nobody wants to read as well.
    """
    low = "-" if after == START else str(after)
    while True:
        ask = _ask_head(run_id)
        for stage_id in stage_ids:
            is_wanted = wanted is None or stage_id in wanted
            high = "+" if is_wanted or after == START else low
            count = limit + 1 if is_wanted else 1
            ask.append(("XRANGE", keys.stage_stream(run_id, stage_id), low, high, "COUNT", count))
        last_id_and_more, stages, *replies = await read_at_once(connection, ask)
        head = _head(run_id, tenant, (last_id_and_more, stages))
        if head.stage_ids == list(stage_ids):
            return head, replies
        stage_ids = head.stage_ids


async def read_stage(redis: Redis, run_id: str, stage_id: str) -> list[StoredEvent]:
    """A stage's whole stream; for stages of a bounded number of events."""
    events: list[StoredEvent] = []
    low = "-"
    while True:
        (reply,) = await _read_ranges(redis, run_id, [stage_id], low, "+", STAGE_PAGE_EVENTS)
        events += decode(stage_id, reply)
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
    ends = [decode(stage_id, replies[2 * i] + replies[2 * i + 1]) for i, stage_id in enumerate(stage_ids)]
    return [(both[0], both[1]) for both in ends if both]


async def _read_ranges(
    redis: Redis, run_id: str, stage_ids: Iterable[str], low: str, high: str, limit: int
) -> list[list[Any]]:
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in stage_ids:
            pipe.execute_command("XRANGE", keys.stage_stream(run_id, stage_id), low, high, "COUNT", limit)
        replies: list[list[Any]] = await pipe.execute()
    return replies
