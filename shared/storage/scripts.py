"""The Lua scripts as typed functions: one script, one verb, one function. They hold every write rule.

All are safe to repeat, so a caller whose connection failed may simply call again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from stagebus.shared.access_errors import TokensUsedUp, TooManyRuns
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.domain.limits import UNLIMITED, TenantLimits
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.observability.trace import NO_TRACE, Trace
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.pipelined import PipelinedConnection

# More bells than that wake no more workers: each takes all it can hold. A bell is the id of a run that is due.
WAKEUPS_MAX: Final = 256
DAY_MS: Final = 24 * 3600 * 1000
TOKENS_TTL_MS: Final = 2 * DAY_MS
# Of so many runs of this process the keys of an append are known without making them.
_APPENDING_RUNS: Final = 1024


_APPEND = Script("append")
_CANCEL = Script("cancel")
_CLAIM = Script("claim")
_CREATE = Script("create")
_DUE = Script("due")
_FINISH = Script("finish")
_READ = Script("read")
_PUBLISH_TOOLS = Script("publish_tools")
_LEAVE = Script("leave")
_RELEASE = Script("release")
_RENEW = Script("renew")
_REQUEUE = Script("requeue")
_SETTLE = Script("settle")
_TAKE = Script("take")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# --- the run and its log -----------------------------------------------------


class Created(NamedTuple):
    """What `create` found or made; `created_at` in Unix ms by Redis's clock, `turn` its score in the queue.

    `held` is what the client's Idempotency-Key holds already, where that is another run: this one was not made.
    """

    is_new: bool
    created_at: int = 0
    turn: int = 0
    held: str = ""


async def create(  # noqa: PLR0913 - a record has that many fields
    redis: Redis,
    run_id: str,
    *,
    tenant: str,
    model: str,
    request: bytes,
    event: str,
    data: bytes,
    ttl_s: float,
    life_s: float = 0,
    idempotency: str = "",
    reservation: str = "",
    limits: TenantLimits = UNLIMITED,
    trace: Trace = NO_TRACE,
    job: bytes = b"",
) -> Created:
    """Write the run's record and its first event, `0-1`, queue its job and ring, unless the run exists.

    Args:
        life_s: longer than the keys of any run live, if that is longer than `ttl_s`.
        idempotency: the Redis key of the client's Idempotency-Key, if there is one.
        reservation: what that is to hold, of this run and no other.
        limits: those of tenants that have none of their own.
        trace: the request's.
        job: arq's, serialised; without one the run is not queued.

    Raises:
        TooManyRuns, TokensUsedUp: the tenant may have no more; nothing was changed.
    """
    key_list = [keys.run(run_id), keys.stages(run_id), keys.stage_stream(run_id, RUN_STAGE), keys.ACTIVE]
    key_list += [keys.runs(tenant), keys.unended(tenant), keys.RUNNING, keys.LIMITS, keys.tokens(tenant)]
    key_list += [keys.TURN, keys.next_turn(tenant), keys.QUEUE, keys.job(run_id), keys.WAKEUP]
    key_list += [idempotency] if idempotency else []
    args = [RunStatus.QUEUED.value, tenant, model, request, RUN_STAGE, event, data, _ms(ttl_s)]
    args += [run_id, ids.created_ms(run_id), _ms(max(ttl_s, life_s)), limits.runs_queued, limits.tokens_per_day]
    args += [trace.request_id, trace.traceparent, job, WAKEUPS_MAX, reservation]
    match await _CREATE(redis, key_list, args):
        case [b"reserved", held, _]:
            return Created(is_new=False, held=held.decode())
        case [b"runs_queued", limit, _]:
            raise TooManyRuns(limit)
        case [b"tokens_per_day", limit, retry_ms]:
            raise TokensUsedUp(limit, retry_ms / 1000)
        case answer, created_at, turn:
            return Created(answer == b"created", int(created_at), int(turn))
    raise AssertionError("create.lua says what it returns")


async def read(redis: Redis, run_id: str, tenant: str) -> dict[bytes, bytes]:
    """The fields of a run's record; none where there is no such run, or it is another tenant's."""
    fields = await _READ(redis, [keys.run(run_id)], [tenant])
    return dict(zip(fields[::2], fields[1::2], strict=True))


class Claim(NamedTuple):
    """A run's next attempt, and what whoever takes it up reads first.

    `now` is Redis's time of the claim, Unix ms; `record` the run's fields after it; `stage_ids` the stages begun.
    """

    attempt: int
    last_id: EventId
    tries: int
    cancel: bool
    now: int
    record: Mapping[bytes, bytes]
    stage_ids: list[str]


async def claim(
    redis: Redis | PipelinedConnection, run_id: str, worker: str, *, only_unheld: bool = False, token: str = ""
) -> Claim | None:
    """Fence every older attempt off and own the run.

    Args:
        token: from `take`; the claim is refused where another has taken the run since.

    Returns:
        The claim, or None where `only_unheld` is set and a worker holds the run.

    Raises:
        RunEnded: the run has ended or is gone; nothing was changed.
        Fenced: its lease is another's.
    """
    key_list = [keys.run(run_id), keys.stages(run_id), *([keys.lease(run_id)] if token else [])]
    args = [worker, RunStatus.RUNNING.value, int(only_unheld), token]
    match await _CLAIM(redis, key_list, args):
        case [b"claimed", attempt, last_id, tries, cancel, now, fields, stage_ids]:
            record = dict(zip(fields[::2], fields[1::2], strict=True))
            stages = [stage_id.decode() for stage_id in stage_ids]
            last = parse_id(last_id.decode())
            return Claim(int(attempt), last, int(tries), cancel == b"1", int(now), record, stages)
        case [b"held", _]:
            return None
        case [b"fenced"]:
            raise Fenced(run_id, 0)
        case _:
            raise RunEnded(run_id)


class LogEntry(NamedTuple):
    """One event on its way into the log."""

    stage_id: str
    event: str
    data: bytes


@dataclass(frozen=True, slots=True)
class RunEnd:
    """What a terminal event sets in the record; `error` and `usage` are JSON or empty."""

    status: RunStatus
    retention_s: float
    error: bytes = b""
    usage: bytes = b""


class Appended(NamedTuple):
    """The log's last id, whether a cancel was asked for, and whether the log lost its tail."""

    last_id: EventId
    cancel: bool = False
    is_behind: bool = False


async def append(
    redis: Redis | PipelinedConnection,
    run_id: str,
    *,
    attempt: int,
    before: EventId,
    entries: Sequence[LogEntry],
    message: bytes,
    ttl_s: float,
    end: RunEnd | None = None,
    stage_ids: Sequence[str] = (),
) -> Appended:
    """Put a batch at the end of the log; what of it stands already is skipped.

    Args:
        before: the log's last id before the batch.
        message: the batch for the live channel, from `live.encode`.
        end: set where the batch's last event is terminal.
        stage_ids: with `end`, every stage that the run began, so that all keys get their TTL.

    Returns:
        `is_behind` where the log ends before `before`: nothing was appended.

    Raises:
        Fenced: another attempt owns the run.
        RunEnded: a terminal event stands, or the run is gone.
    """
    streams = tuple(dict.fromkeys([*stage_ids, *[entry.stage_id for entry in entries]]))
    number = {stage_id: i for i, stage_id in enumerate(streams, start=1)}
    args: list[Any] = [attempt, str(before), message, _ms(ttl_s)]
    args += ("", "", "", 0) if end is None else (end.status.value, end.error, end.usage, _ms(end.retention_s))
    args += streams
    for entry in entries:
        args += (number[entry.stage_id], entry.event, entry.data)
    match await _APPEND(redis, _append_keys(run_id, streams), args):
        case [b"ok", last_id, cancel]:
            return Appended(parse_id(last_id.decode()), cancel == b"1")
        case [b"behind", last_id]:
            return Appended(parse_id(last_id.decode()), is_behind=True)
        case [b"fenced", _]:
            raise Fenced(run_id, attempt)
        case _:
            raise RunEnded(run_id)


@lru_cache(maxsize=_APPENDING_RUNS)
def _append_keys(run_id: str, streams: tuple[str, ...]) -> tuple[str, ...]:
    """Kept, as a run says many things one by one in the same stage."""
    stage_streams = [keys.stage_stream(run_id, stage_id) for stage_id in streams]
    return (keys.run(run_id), keys.live(run_id), keys.stages(run_id), *stage_streams)


CANCEL_MESSAGE: Final = b"cancel"


async def cancel(redis: Redis, run_id: str) -> bool:
    """Store that the run is to be cancelled and tell its worker.

    Returns:
        Whether a worker holds the run; if none does, the caller ends it.

    Raises:
        RunEnded: it has ended already, or is gone.
    """
    match await _CANCEL(redis, [keys.run(run_id), keys.control(run_id)], [CANCEL_MESSAGE]):
        case [b"asked", worker]:
            return bool(worker)
        case _:
            raise RunEnded(run_id)


# --- the queue and its leases ------------------------------------------------


class Due(NamedTuple):
    """Runs that may be taken now, and the ms until the next one may be (-1: none is waiting)."""

    run_ids: list[str]
    next_ms: int


async def due(redis: Redis | PipelinedConnection, limit: int) -> Due:
    """Look for jobs whose time has come; held ones are not among them."""
    next_ms, *run_ids = await _DUE(redis, [keys.QUEUE], [limit, keys.FIRST_TIME])
    return Due([run_id.decode() for run_id in run_ids], int(next_ms))


async def take(
    redis: Redis | PipelinedConnection, run_id: str, token: str, lease_s: float, running_max: int = 0
) -> bool:
    """Get the lease of a due job; False where it is gone, not due, another's, or has to wait for its tenant's others.

    Args:
        running_max: how many runs a tenant without a limit of its own may have running; 0: any number.
    """
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id), keys.RUNNING, keys.THROTTLED, keys.LIMITS, keys.TURN]
    args = [run_id, token, _ms(lease_s), running_max, keys.FIRST_TIME, keys.NEVER]
    return bool(await _TAKE(redis, key_list, args))


async def leave(
    redis: Redis | PipelinedConnection, run_id: str, running_max: int = 0, *, tenant: str = "", has_ended: bool = False
) -> int:
    """A run ended or was given back: let in what waits for that; how many.

    Args:
        running_max: as in `take`.
        tenant: whose it was, where the record may be gone.
        has_ended: it cannot go on; else one that another worker took since stays among those that run.
    """
    key_list = [keys.run(run_id), keys.QUEUE, keys.RUNNING, keys.THROTTLED, keys.LIMITS, keys.TURN, keys.WAKEUP]
    key_list += [] if has_ended else [keys.lease(run_id)]
    return int(await _LEAVE(redis, key_list, [run_id, tenant, running_max, WAKEUPS_MAX]))


class Ended(NamedTuple):
    """What a run came to; `at` in Unix ms by Redis's clock. The default is one whose record is gone."""

    status: str = ""
    at: int = 0
    events: int = 0
    tokens: int = 0


async def settle(redis: Redis | PipelinedConnection, run_id: str, *, tenant: str, ended: Ended) -> bool:
    """A run has ended: out of the active ones, and into the totals and its tenant's count; False where that was done."""
    key_list = [keys.ACTIVE, keys.unended(tenant), keys.tokens(tenant), keys.TOTALS]
    args = [run_id, ended.at // DAY_MS, ended.tokens, TOKENS_TTL_MS, ended.status, ended.events]
    return bool(await _SETTLE(redis, key_list, args))


class Renewed(NamedTuple):
    """What a renewal tells a worker that may be idle in a tool."""

    cancel: bool
    last_id: EventId


async def renew(
    redis: Redis,
    run_id: str,
    *,
    token: str,
    attempt: int,
    lease_s: float,
    ttl_s: float = 0,
    stage_ids: Sequence[str] = (),
) -> Renewed | None:
    """Keep the lease; with `ttl_s`, also renew the TTL of the run's keys.

    Returns:
        None where the lease is lost: another attempt owns the run, or it has ended.
    """
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id)]
    if ttl_s:
        key_list += [keys.stages(run_id), *(keys.stage_stream(run_id, stage_id) for stage_id in stage_ids)]
    match await _RENEW(redis, key_list, [run_id, token, attempt, _ms(lease_s), _ms(ttl_s)]):
        case [b"ok", cancel, last_id]:
            return Renewed(cancel == b"1", parse_id(last_id.decode()))
        case _:
            return None


async def release(
    redis: Redis | PipelinedConnection, run_id: str, *, token: str, attempt: int | None, delay_s: float = 0
) -> bool:
    """Give a run back unfinished, due after `delay_s`; False where another holds it by now."""
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id), keys.WAKEUP]
    args = [run_id, token, "" if attempt is None else attempt, _ms(delay_s), int(delay_s == 0), WAKEUPS_MAX]
    return bool(await _RELEASE(redis, key_list, args))


async def finish(redis: Redis | PipelinedConnection, run_id: str, token: str) -> bool:
    """Take the job of an ended run out of the queue; False where the lease is not ours any more."""
    key_list = [keys.QUEUE, keys.lease(run_id), keys.job(run_id), keys.arq_retry(run_id)]
    return bool(await _FINISH(redis, key_list, [run_id, token]))


async def requeue(redis: Redis, run_id: str, job: bytes, ttl_s: float) -> bool:
    """Make sure that the run has a job in the queue; True where it had no entry."""
    key_list = [keys.QUEUE, keys.job(run_id), keys.WAKEUP]
    return bool(await _REQUEUE(redis, key_list, [run_id, job, _ms(ttl_s), WAKEUPS_MAX]))


# --- the catalogue -----------------------------------------------------------


async def publish_tools(redis: Redis, described: Mapping[str, bytes], ttl_s: float) -> set[str]:
    """Say which tools a worker has, and forget those that none said it has for `ttl_s`.

    Args:
        described: descriptions by name; an empty one where it was published before.

    Returns:
        The names whose description is needed after all.
    """
    named = [part for name, description in described.items() for part in (name, description)]
    return {name.decode() for name in await _PUBLISH_TOOLS(redis, [keys.TOOLS, keys.TOOLS_SEEN], [_ms(ttl_s), *named])}
