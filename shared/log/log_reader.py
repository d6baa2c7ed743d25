"""Reads a run's log: pages after a cursor, merged over the stages.

A page over several streams is one snapshot, read in one transaction: the run's last id, which becomes the reader's new
position, and the streams up to it.
"""

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log.log_page import LogGap, Page, StageSlice, StoredEvent, decode, merge, terminal_of
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import Command, ReadConnection, read_at_once
from stagebus.shared.storage.redis_client import Redis

# A whole stage is read in pages of this many events.
STAGE_PAGE_EVENTS: Final = 10_000


class Head(NamedTuple):
    """The last id of a run's log, whether the run has ended, and its stages in order."""

    last_id: EventId
    is_ended: bool
    stage_ids: list[str]


async def read_head(connection: ReadConnection, run_id: str, owner: RunOwner | None = None) -> Head:
    """Reads the end of the log.

    Args:
        owner: whose run it must be; None: anyone's.

    Raises:
        RunNotFound: the owner has no such run.
    """
    return _head(run_id, owner, await read_at_once(connection, _ask_head(run_id)))


def _ask_head(run_id: str) -> list[Command]:
    return [
        ("HMGET", keys.run(run_id), "last_id", "finished_at", "tenant", "user"),
        ("LRANGE", keys.stages(run_id), 0, -1),
    ]


def _head(run_id: str, owner: RunOwner | None, replies: Sequence[Any]) -> Head:
    (last_id, finished_at, tenant, user), stage_ids = replies
    if last_id is None or not (owner is None or owner.owns(tenant, user)):
        raise RunNotFound(run_id)
    return Head(parse_id(last_id.decode()), bool(finished_at), [stage_id.decode() for stage_id in stage_ids])


async def read_last_ids(redis: Redis, run_ids: Sequence[str]) -> list[EventId | None]:
    """Reads the last ids of several logs in one round trip; None for a run without a readable record."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(keys.run(run_id), "last_id")
        return [_as_last_id(reply) for reply in await pipe.execute(raise_on_error=False)]


def _as_last_id(reply: bytes | Exception | None) -> EventId | None:
    # One bad record must not fail the others of the same read.
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
    owner: RunOwner | None = None,
    stage_ids: Sequence[str] = (),
) -> Page:
    """Reads the next page of the log, or of one stage.

    Every read checks that the log still has the cursor, even if it is the position of the previous page: the log may
    lose its tail between two pages without any other sign.

    Args:
        after: the cursor. If the log does not have it, the page starts at the beginning and has a `gap`.
        limit: the maximum number of events.
        stage_id: read only this stage's events and the run's terminal event.
        owner: whose run it must be; None: anyone's.
        stage_ids: the stages that the run is known to have begun. If they are all, the page takes one round trip.

    Raises:
        RunNotFound: the owner has no such run.
    """
    wanted = None if stage_id is None else {stage_id, RUN_STAGE}
    head, replies = await _read_snapshot(connection, run_id, owner, stage_ids, wanted, after, limit)
    gap = None
    if after not in (START, head.last_id) and not any(reply and reply[0][0] == b"%d-%d" % after for reply in replies):
        requested, after = after, START
        head, replies = await _read_snapshot(connection, run_id, owner, head.stage_ids, wanted, after, limit)
        firsts = [parse_id(reply[0][0].decode()) for reply in replies if reply]
        gap = LogGap(requested, min(firsts, default=head.last_id), head.last_id)
    pairs = zip(head.stage_ids, replies, strict=True)
    slices = [StageSlice(*pair) for pair in pairs if wanted is None or pair[0] in wanted]
    slices, bound = merge(slices, after, limit)
    if stage_id not in (None, RUN_STAGE):
        slices = [found if found.stage_id == stage_id else terminal_of(found) for found in slices]
    is_last = bound is None or bound == head.last_id
    return Page(slices, bound or head.last_id, is_last, head.is_ended, gap, head.stage_ids)


async def _read_snapshot(
    connection: ReadConnection,
    run_id: str,
    owner: RunOwner | None,
    stage_ids: Sequence[str],
    wanted: Collection[str] | None,
    after: EventId,
    limit: int,
) -> tuple[Head, list[list[Any]]]:
    """Reads the log's end, and the entries of each stage from `after` on, in one transaction.

    The reply includes the cursor's own event. It may be in any stage, so the stages that are not wanted are searched for
    it as well.
    """
    low = "-" if after == START else str(after)
    while True:
        ask = _ask_head(run_id)
        for stage_id in stage_ids:
            is_wanted = wanted is None or stage_id in wanted
            high = "+" if is_wanted or after == START else low
            count = limit + 1 if is_wanted else 1
            ask.append(("XRANGE", keys.stage_stream(run_id, stage_id), low, high, "COUNT", count))
        head_fields, stages, *replies = await read_at_once(connection, ask)
        head = _head(run_id, owner, (head_fields, stages))
        if head.stage_ids == list(stage_ids):
            return head, replies
        stage_ids = head.stage_ids


async def read_stage(redis: Redis, run_id: str, stage_id: str) -> list[StoredEvent]:
    """Reads a stage's whole stream; only for stages with a bounded number of events."""
    return [event async for page in stage_pages(redis, run_id, stage_id, STAGE_PAGE_EVENTS) for event in page]


async def stage_pages(redis: Redis, run_id: str, stage_id: str, limit: int) -> AsyncGenerator[list[StoredEvent], None]:
    """Reads a stage's stream in pages of at most `limit` events."""
    low = "-"
    while True:
        (reply,) = await _read_ranges(redis, run_id, [stage_id], low, "+", limit)
        yield decode(stage_id, reply)
        if len(reply) < limit:
            return
        low = f"({reply[-1][0].decode()}"


async def read_stage_ends(redis: Redis, run_id: str, stage_ids: Sequence[str]) -> list[tuple[StoredEvent, StoredEvent]]:
    """Reads the first and the last event of each stage; a stage without events is left out, as at the end of retention."""
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in stage_ids:
            key = keys.stage_stream(run_id, stage_id)
            pipe.execute_command("XRANGE", key, "-", "+", "COUNT", 1)
            pipe.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        replies = await pipe.execute()
    ends = [decode(stage_id, replies[2 * i] + replies[2 * i + 1]) for i, stage_id in enumerate(stage_ids)]
    return [(both[0], both[1]) for both in ends if both]


class LogOutline(NamedTuple):
    """The ends of a run's stages at one moment. What is damaged is left out.

    Attributes:
        last_id: the end of the log; None if the record is damaged.
        last_events: the last event of each stage, without the journal.
        journal: the journal's first events.
        items: as `read_model_items` returns them.
    """

    last_id: EventId | None
    last_events: dict[str, StoredEvent]
    journal: list[StoredEvent]
    items: dict[str, bytes]


async def read_outline(redis: Redis, run_id: str, stage_ids: Sequence[str], journal_max: int) -> LogOutline:
    """Reads the ends of a run's stages and its journal in one transaction."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hget(keys.run(run_id), "last_id")
        pipe.hgetall(keys.model_items(run_id))
        pipe.execute_command("XRANGE", keys.stage_stream(run_id, RUN_STAGE), "-", "+", "COUNT", journal_max)
        for stage_id in stage_ids:
            pipe.execute_command("XREVRANGE", keys.stage_stream(run_id, stage_id), "+", "-", "COUNT", 1)
        last_id, items, journal, *lasts = await pipe.execute(raise_on_error=False)
    ends = {
        stage_id: decode(stage_id, last) for stage_id, last in zip(stage_ids, lasts, strict=True) if _is_whole(last)
    }
    return LogOutline(
        _as_last_id(last_id),
        {stage_id: last[0] for stage_id, last in ends.items() if last and stage_id != RUN_STAGE},
        decode(RUN_STAGE, journal) if _is_whole(journal) else [],
        _as_items(items),
    )


def _is_whole(reply: Any) -> bool:
    """Returns whether the key of a read could be read."""
    return not isinstance(reply, Exception)


async def read_model_items(redis: Redis, run_id: str) -> dict[str, bytes]:
    """Reads the items that the models of complete stages wrote for themselves, JSON, by stage.

    A run can continue without them, so a damaged key counts as none.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.model_items(run_id))
        (found,) = await pipe.execute(raise_on_error=False)
    return _as_items(found)


def _as_items(found: Any) -> dict[str, bytes]:
    return {stage_id.decode(): data for stage_id, data in found.items()} if isinstance(found, dict) else {}


async def _read_ranges(
    redis: Redis, run_id: str, stage_ids: Iterable[str], low: str, high: str, limit: int
) -> list[list[Any]]:
    async with redis.pipeline(transaction=False) as pipe:
        for stage_id in stage_ids:
            pipe.execute_command("XRANGE", keys.stage_stream(run_id, stage_id), low, high, "COUNT", limit)
        replies: list[list[Any]] = await pipe.execute()
    return replies
