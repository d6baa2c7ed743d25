"""The Lua scripts of a run's record and its log as typed functions: one script, one verb, one function.

The scripts hold every rule about writes. All are safe to repeat, so a caller whose connection failed calls again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import orjson

from stagebus.shared.access_errors import TokensUsedUp, TooManyRuns
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.domain.limits import UNLIMITED, TenantLimits, tokens_ttl_ms
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunDeleted, RunEnded
from stagebus.shared.observability.trace import NO_TRACE, Trace
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import partition_of_run
from stagebus.shared.storage.thread_keys import CANCEL_MESSAGE, RunThread, ThreadAdmission, ThreadEnd
from stagebus.shared.thread_errors import TurnNotCome

# The keys of an append are cached for this many runs of the process.
_APPENDING_RUNS: Final = 1024

_APPEND = Script("append", uses=("announce", "virtual_time", "thread"))
_CANCEL = Script("cancel", uses=("virtual_time", "thread"))
_CLAIM = Script("claim")
_CREATE = Script(
    "create", uses=("tenant_limit", "tokens_left", "announce", "virtual_time", "thread", "close_gone", "admission")
)
_READ = Script("read", uses=("is_owned",))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


class CreateResult(NamedTuple):
    """The run that `create` made or found.

    Attributes:
        created_at: Unix ms by Redis's clock.
        vtime: the run's score in the queue.
        reserved_for: the value of the client's Idempotency-Key, if it belongs to another run; nothing was created.
        expected: the active run of the thread and the interrupt that waits there, which the call has to name; nothing
            was created.
    """

    is_new: bool
    created_at: int = 0
    vtime: int = 0
    reserved_for: str = ""
    expected: tuple[str, str] | None = None


async def create(  # noqa: PLR0913 - a record has that many fields
    connection: ScriptConnection,
    run_id: str,
    *,
    tenant: str,
    model: str,
    request: bytes,
    event: str,
    data: bytes,
    life_s: float,
    idempotency: str = "",
    reservation: str = "",
    limits: TenantLimits = UNLIMITED,
    trace: Trace = NO_TRACE,
    job: bytes = b"",
    tokens: int = 0,
    user: str = "",
    webhook_url: str = "",
    has_webhooks: bool = False,
    thread: ThreadAdmission | None = None,
) -> CreateResult:
    """Writes the run's record and its first event, `0-1`, queues its job and wakes a worker, unless the run exists.

    Args:
        life_s: how long the tenant's lists and the virtual times outlive this creation.
        idempotency: the Redis key of the client's Idempotency-Key, if there is one. One of another partition is bound already.
        reservation: the value that this key gets. It names this run.
        limits: the limits of tenants without their own.
        trace: the request's trace.
        job: the serialised arq job; without one the run is not queued.
        tokens: how many tokens of the tenant's day to reserve; fewer are reserved if fewer are left.
        user: the person within the tenant whose run it is, or empty.
        webhook_url: the run's own webhook.
        has_webhooks: this process has webhooks configured, so the outbox has to be written for the run.
        thread: the conversation that the run joins, as the active run or as one that waits for its turn.

    Raises:
        TooManyRuns, TokensUsedUp: the tenant is at its limit; nothing was changed.
        RunDeleted: the run was created and deleted before.
        ThreadBusy, ThreadFull, ThreadQueueFull, ThreadDeleting, ParentNotFound, ParentNotEnded: the thread does not take
            the run; nothing was created.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), keys.stages(run_id), keys.stage_stream(run_id, RUN_STAGE), part.active]
    key_list += [part.runs(tenant), part.active_of_tenant(tenant), part.running, part.tokens(tenant)]
    key_list += [part.virtual_time, part.tenant_virtual_time(tenant), part.queue, part.job(run_id), part.wakeup]
    key_list += [part.reserved, part.runs(tenant, user), part.feed(tenant)]
    is_bound_here = bool(idempotency) and part.has(idempotency)
    key_list += [idempotency] if is_bound_here else []
    thread_keys = thread.keys(part) if thread else []
    args: list[Any] = [RunStatus.QUEUED.value, tenant, model, request, RUN_STAGE, event, data]
    args += [run_id, ids.created_ms(run_id), _ms(life_s), limits.runs_queued, limits.tokens_per_day]
    args += [trace.request_id, trace.traceparent, job, keys.WAKEUPS_MAX, reservation, part.limits]
    args += [tokens, tokens_ttl_ms(life_s), user, trace.baggage, webhook_url, int(has_webhooks)]
    args += [len(thread_keys)]
    args += [thread.encode(), thread.request.encode_messages()] if thread else ["", ""]
    args += ["" if is_bound_here else idempotency]
    return _created(run_id, await _CREATE(connection, [*key_list, *thread_keys], args), thread)


def _created(run_id: str, reply: Sequence[Any], thread: ThreadAdmission | None) -> CreateResult:
    match reply:
        case [b"created" | b"exists" as word, created_at, vtime]:
            return CreateResult(word == b"created", int(created_at), int(vtime))
        case [b"reserved", value, _]:
            return CreateResult(is_new=False, reserved_for=value.decode())
        case [b"expected", active, interrupt]:
            return CreateResult(is_new=False, expected=(active.decode(), interrupt.decode()))
        case [b"runs_queued", limit, _]:
            raise TooManyRuns(limit)
        case [b"tokens_per_day", limit, retry_ms]:
            raise TokensUsedUp(limit, retry_ms / 1000 if retry_ms else None)
        case [b"deleted", _, _]:
            raise RunDeleted(run_id)
        case refusal:
            assert thread is not None, "create.lua returns one of these"
            raise thread.refusal(refusal)


async def read(connection: ScriptConnection, run_id: str, owner: RunOwner) -> dict[bytes, bytes]:
    """Returns the fields of a run's record; an empty dict if the owner has no such run."""
    fields = await _READ(connection, [keys.run(run_id)], owner.fields)
    return dict(zip(fields[::2], fields[1::2], strict=True))


ClaimGuard = Literal["", "worker", "lease"]


class Claim(NamedTuple):
    """A run's next attempt, and what its worker reads first.

    Attributes:
        now: Redis's time of the claim, Unix ms.
        record: the run's fields after the claim.
        stage_ids: the stages that the run has begun.
        reserved: the tokens of its tenant's day that are reserved for the run.
    """

    attempt: int
    last_id: EventId
    tries: int
    cancel: bool
    now: int
    record: Mapping[bytes, bytes]
    stage_ids: list[str]
    reserved: int = 0


async def claim(
    connection: ScriptConnection,
    run_id: str,
    worker: str,
    *,
    guard: ClaimGuard = "",
    token: str = "",
    has_webhooks: bool = False,
    thread_key: str = "",
) -> Claim | None:
    """Starts a run's next attempt and fences all older ones.

    Args:
        guard: "worker" leaves a run alone that names a worker, "lease" one that has a lease.
        token: from `queue_scripts.acquire`.
        has_webhooks: as in `create`.
        thread_key: the thread that the run's job names. If it names none, a run in a thread takes a second round trip.

    Returns:
        The claim, or None if the guard leaves the run alone.

    Raises:
        RunEnded: the run has ended or is gone; nothing was changed.
        Fenced: another token holds the run's lease.
        TurnNotCome: the run waits for its turn in its thread; it was given back.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), keys.stages(run_id), part.reserved]
    key_list += [part.lease(run_id)] if token or guard == "lease" else []
    key_list += [thread_key, part.queue] if token and thread_key else []
    args = [worker, RunStatus.RUNNING.value, guard, token, run_id, int(has_webhooks), keys.THROTTLED_SCORE]
    match await _CLAIM(connection, key_list, args):
        case [b"claimed", attempt, last_id, tries, cancel, now, fields, stage_ids, reserved]:
            record = dict(zip(fields[::2], fields[1::2], strict=True))
            stages = [stage_id.decode() for stage_id in stage_ids]
            last = parse_id(last_id.decode())
            return Claim(int(attempt), last, int(tries), cancel == b"1", int(now), record, stages, int(reserved))
        case [b"held", _]:
            return None
        case [b"fenced"]:
            raise Fenced(run_id, 0)
        case [b"waits"]:
            raise TurnNotCome(run_id)
        case [b"thread", key]:
            return await claim(connection, run_id, worker, guard=guard, token=token, thread_key=key.decode())
        case _:
            raise RunEnded(run_id)


class LogEntry(NamedTuple):
    """One event to append to the log."""

    stage_id: str
    event: str
    data: bytes
    items: bytes = b""  # the model items of a completed stage, JSON; no reader of the log gets them

    @property
    def size(self) -> int:
        """Returns the bytes that the entry takes."""
        return len(self.data) + len(self.items)


@dataclass(frozen=True, slots=True)
class TerminalState:
    """The fields that a terminal event sets in the record; `error` and `usage` are JSON or empty.

    Attributes:
        finish_reason: why the answer ended; empty if that is not known.
        thread: the end of the run's turn, if it is in a thread.
    """

    status: RunStatus
    retention_s: float
    error: bytes = b""
    usage: bytes = b""
    finish_reason: str = ""
    thread: ThreadEnd | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields as `append.lua` reads them."""
        fields: dict[str, Any] = {
            "status": self.status.value,
            "error": self.error.decode(),
            "usage": self.usage.decode(),
            "finish_reason": self.finish_reason,
            "retention_ms": _ms(self.retention_s),
        }
        return fields | ({"thread": self.thread.fields(self.status.value)} if self.thread else {})


# The events besides the terminal ones that `append.lua` tells others of.
TOLD_EVENTS: Final = frozenset({"run_started", "call_deferred"})
_END_AT: Final = 3  # the place of `end` in the script's arguments


class AppendResult(NamedTuple):
    """The log's last id, whether a cancel was requested, and whether the log lost its tail."""

    last_id: EventId
    cancel: bool = False
    is_behind: bool = False


async def append(
    connection: ScriptConnection,
    run_id: str,
    *,
    attempt: int,
    before: EventId,
    entries: Sequence[LogEntry],
    message: bytes,
    end: TerminalState | None = None,
    stage_ids: Sequence[str] = (),
    tokens: int | None = None,
    tenant: str = "",
) -> AppendResult:
    """Appends a batch to the log; events that the log already has are skipped.

    Args:
        before: the log's last id before the batch.
        entries: only the last one may have items.
        message: the batch for the live channel, from `live_batch.encode`.
        end: set if the batch's last event is terminal.
        stage_ids: with `end`, every stage that the run began, so that all its streams get their TTL.
        tokens: the tokens that the run has used so far, over all attempts; None leaves the stored number.
        tenant: the owner, whose feed tells of the run; empty if that is not known.

    Returns:
        `is_behind` if the log ends before `before`; nothing was appended then.

    Raises:
        Fenced: another attempt owns the run.
        RunEnded: the log has a terminal event, or the run is gone.
    """
    streams = tuple(dict.fromkeys([*stage_ids, *[entry.stage_id for entry in entries]]))
    number = {stage_id: i for i, stage_id in enumerate(streams, start=1)}
    args: list[Any] = [attempt, str(before), message]
    args += ("", "" if tokens is None else tokens, entries[-1].items, *streams)
    is_told = end is not None
    for entry in entries:
        args += (number[entry.stage_id], entry.event, entry.data)
        is_told = is_told or entry.event in TOLD_EVENTS
    key_list = _append_keys(run_id, streams)
    if is_told:
        told_keys = partition_of_run(connection, run_id).told_keys(tenant)
        key_list += told_keys
        args[_END_AT] = orjson.dumps({**(end.fields() if end else {}), "run_id": run_id, "told": len(told_keys)})
    if end is not None and end.thread is not None:
        key_list += tuple(end.thread.keys(partition_of_run(connection, run_id)))
    match await _APPEND(connection, key_list, args):
        case [b"ok", last_id, cancel]:
            return AppendResult(parse_id(last_id.decode()), cancel == b"1")
        case [b"behind", last_id]:
            return AppendResult(parse_id(last_id.decode()), is_behind=True)
        case [b"fenced", b"thread"]:
            raise AssertionError(f"run {run_id} is in a thread, which its end has to name")
        case [b"fenced", _]:
            raise Fenced(run_id, attempt)
        case _:
            raise RunEnded(run_id)


@lru_cache(maxsize=_APPENDING_RUNS)
def _append_keys(run_id: str, streams: tuple[str, ...]) -> tuple[str, ...]:
    """Cached, since a run appends many single events to one stage."""
    stage_streams = [keys.stage_stream(run_id, stage_id) for stage_id in streams]
    return (keys.run(run_id), keys.live(run_id), keys.stages(run_id), keys.model_items(run_id), *stage_streams)


async def cancel(connection: ScriptConnection, run_id: str, reason: str = "", thread: RunThread | None = None) -> bool:
    """Stores the cancel request and sends it to the run's worker. A run that waits for its turn leaves its thread.

    Args:
        reason: why, for people; the first request's reason stays.
        thread: the thread of the run, if it is in one.

    Returns:
        Whether a worker holds the run. If none does, the caller ends the run.

    Raises:
        RunEnded: the run has ended already or is gone.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), keys.control(run_id), part.queue, *(thread.keys(part) if thread else ())]
    thread_args = orjson.dumps(thread.args()) if thread else ""
    match await _CANCEL(connection, key_list, [CANCEL_MESSAGE, reason, run_id, RunStatus.PARKED.value, thread_args]):
        case [b"asked", worker]:
            return bool(worker)
        case _:
            raise RunEnded(run_id)
