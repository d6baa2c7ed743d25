"""The Lua scripts as typed functions: one script, one verb, one function. They hold every write rule.

Each is sent by its hash, and whole where the server does not know it (after a restart).
All are safe to repeat, so a caller whose connection failed may simply call again.
Spec: https://redis.io/docs/latest/develop/programmability/eval-intro/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared import keys
from shared.cursor import EventId, parse_id
from shared.errors import Fenced, RunEnded
from shared.line import Line
from shared.runs import RUN_STAGE, RunStatus

# More bells than that wake no more workers: each takes all it can hold.
BELLS_MAX: Final = 256


class Script:
    """One Lua file and its hash."""

    def __init__(self, name: str) -> None:
        self.text = (files("shared") / "lua" / f"{name}.lua").read_text()
        # Not for security: EVALSHA names scripts by SHA-1.
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, redis: Redis | Line, key_list: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it; the server's answer."""
        try:
            return await redis.evalsha(self.sha, len(key_list), *key_list, *args)  # type: ignore[misc]
        except NoScriptError:
            return await redis.eval(self.text, len(key_list), *key_list, *args)  # type: ignore[misc]


_APPEND = Script("append")
_CANCEL = Script("cancel")
_CLAIM = Script("claim")
_CREATE = Script("create")
_DUE = Script("due")
_FINISH = Script("finish")
_RELEASE = Script("release")
_RENEW = Script("renew")
_REQUEUE = Script("requeue")
_TAKE = Script("take")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# --- the run and its log -----------------------------------------------------


class Created(NamedTuple):
    """What `create` found or made; `created_at` in Unix ms by Redis's clock."""

    is_new: bool
    created_at: int


async def create(
    redis: Redis,
    run_id: str,
    *,
    tenant: str,
    model: str,
    request: bytes,
    event: str,
    data: bytes,
    ttl_s: float,
    idempotency: str = "",
) -> Created:
    """Write the run's record and its first event, `0-1`, unless the run exists.

    Args:
        idempotency: the Redis key of the client's Idempotency-Key, if there is one.
    """
    answer, created_at = await _CREATE(
        redis,
        [keys.run(run_id), keys.stages(run_id), keys.stage_stream(run_id, RUN_STAGE)],
        [RunStatus.QUEUED.value, tenant, model, request, RUN_STAGE, event, data, _ms(ttl_s), idempotency],
    )
    return Created(answer == b"created", int(created_at))


class Claim(NamedTuple):
    """A run's next attempt. `now` is Redis's time of the claim, Unix ms."""

    attempt: int
    last_id: EventId
    tries: int
    cancel: bool
    now: int


async def claim(redis: Redis, run_id: str, worker: str, *, only_unheld: bool = False) -> Claim | None:
    """Fence every older attempt off and own the run.

    Returns:
        The claim, or None where `only_unheld` is set and a worker holds the run.

    Raises:
        RunEnded: the run has ended or is gone; nothing was changed.
    """
    answer = await _CLAIM(redis, [keys.run(run_id)], [worker, RunStatus.RUNNING.value, int(only_unheld)])
    match answer:
        case [b"claimed", attempt, last_id, tries, cancel, now]:
            return Claim(int(attempt), parse_id(last_id.decode()), int(tries), cancel == b"1", int(now))
        case [b"held", _]:
            return None
        case _:
            raise RunEnded(run_id)


@dataclass(frozen=True, slots=True)
class LogEntry:
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
    redis: Redis | Line,
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
    streams = list(dict.fromkeys([*stage_ids, *(entry.stage_id for entry in entries)]))
    number = {stage_id: i for i, stage_id in enumerate(streams, start=1)}
    args: list[Any] = [attempt, str(before), message, _ms(ttl_s)]
    args += ["", "", "", 0] if end is None else [end.status.value, end.error, end.usage, _ms(end.retention_s)]
    args += streams
    for entry in entries:
        args += (number[entry.stage_id], entry.event, entry.data)
    key_list = [keys.run(run_id), keys.live(run_id), keys.stages(run_id)]
    key_list += [keys.stage_stream(run_id, stage_id) for stage_id in streams]
    match await _APPEND(redis, key_list, args):
        case [b"ok", last_id, cancel]:
            return Appended(parse_id(last_id.decode()), cancel == b"1")
        case [b"behind", last_id]:
            return Appended(parse_id(last_id.decode()), is_behind=True)
        case [b"fenced", _]:
            raise Fenced(run_id, attempt)
        case _:
            raise RunEnded(run_id)


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


async def due(redis: Redis, limit: int) -> Due:
    """Look for jobs whose time has come; held ones are not among them."""
    next_ms, *run_ids = await _DUE(redis, [keys.QUEUE], [limit])
    return Due([run_id.decode() for run_id in run_ids], int(next_ms))


async def take(redis: Redis, run_id: str, token: str, lease_s: float) -> bool:
    """Get the lease of a due job; False where it is gone, not due or another's."""
    return bool(await _TAKE(redis, [keys.QUEUE, keys.lease(run_id)], [run_id, token, _ms(lease_s)]))


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


async def release(redis: Redis, run_id: str, *, token: str, attempt: int | None, delay_s: float = 0) -> bool:
    """Give a run back unfinished, due after `delay_s`; False where another holds it by now."""
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id), keys.BELL]
    args = [run_id, token, "" if attempt is None else attempt, _ms(delay_s), int(delay_s == 0), BELLS_MAX]
    return bool(await _RELEASE(redis, key_list, args))


async def finish(redis: Redis, run_id: str, token: str) -> bool:
    """Take the job of an ended run out of the queue; False where the lease is not ours any more."""
    key_list = [keys.QUEUE, keys.lease(run_id), keys.job(run_id), keys.arq_retry(run_id)]
    return bool(await _FINISH(redis, key_list, [run_id, token]))


async def requeue(redis: Redis, run_id: str, job: bytes, ttl_s: float) -> bool:
    """Make sure that the run has a job in the queue; True where it had no entry."""
    key_list = [keys.QUEUE, keys.job(run_id), keys.BELL]
    return bool(await _REQUEUE(redis, key_list, [run_id, job, _ms(ttl_s), BELLS_MAX]))
