"""Runs: create, read, count, cancel, and end those that no worker holds."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.answer_finish import finish_reason_of
from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.domain.events import Cancel, Error, Event, RunQueued, StageCompleted
from stagebus.shared.domain.runs import RUN_STAGE, STATUS_BY_TERMINAL_EVENT, RunRecord, RunStatus, decode_run
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import OnActive, ThreadRequest
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import Fenced, RunDeleted, RunEnded, RunNotFound
from stagebus.shared.log import live_batch, log_reader, sse
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.observability import spans
from stagebus.shared.observability.spans import Span
from stagebus.shared.observability.trace import NO_TRACE, Trace
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.partition_keys import partition_of_run, partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing, read_time_ms
from stagebus.shared.storage.thread_keys import ThreadAdmission, ThreadEnd
from stagebus.shared.store import idempotency_keys, run_placement, run_queue
from stagebus.shared.store.run_transcript import read_turn
from stagebus.shared.store.thread_store import end_of, thread_of, times_of
from stagebus.shared.thread_errors import ThreadBusy

# A thread's active run may change this often while a run is created; the thread is busy then.
LOOKS_MAX: Final = 8


async def create_run(
    redis: Redis,
    settings: Settings,
    *,
    tenant: str,
    model: str,
    request: dict[str, Any],
    idempotency_key: str | None = None,
    trace: Trace = NO_TRACE,
    tokens: int = 0,
    user: str = "",
    thread: ThreadRequest | None = None,
) -> str:
    """Creates a run and queues it with one script, which is safe to repeat under the same idempotency key.

    The script writes all of the run or nothing. A refused request leaves the key free.

    Args:
        tokens: how many tokens of the tenant's day to reserve for the run, if as many are left.
        user: the person within the tenant whose run it is, or empty. Each user has idempotency keys of their own.
        thread: the conversation that the run joins. Its messages are stored there; `request` has none then.

    Returns:
        The run's id; if the key was used before, the id of the first call.

    Raises:
        IdempotencyConflict: the key belongs to a run with another request.
        TooManyRuns, TokensUsedUp: the tenant is at its limit.
        RunDeleted: the run that the key created was deleted.
        ThreadBusy, ThreadFull, ThreadQueueFull, ThreadDeleting, ParentNotFound, ParentNotEnded: the thread does not take
            the run.
    """
    body = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
    digest = _digest(body, thread)
    idempotency = run_placement.idempotency_key(redis, tenant, idempotency_key, user)
    new_id = await run_placement.new_run_id(redis, settings, tenant, thread, idempotency)
    thread_key = keys.thread(thread.identity) if thread else ""
    async with idempotency_keys.bound_apart(redis, settings, idempotency, new_id, digest) as bound_id:
        run_id = bound_id
        joining = ThreadAdmission(thread, times_of(settings), run_id, digest=digest) if thread else None
        while True:
            queued = RunQueued(run_id=run_id, model=model, at=wall_ms())
            created = await run_scripts.create(
                redis, run_id, tenant=tenant, model=model, request=body, event=queued.event, data=queued.data(),
                idempotency=idempotency, reservation=f"{run_id} {digest}", life_s=settings.lists_ttl_s,
                limits=settings.tenant_limits, trace=trace, job=run_queue.new_job(run_id, thread_key), tokens=tokens,
                user=user, webhook_url=request.get("webhook_url") or "", has_webhooks=settings.has_webhooks,
                thread=joining,
            )  # fmt: skip
            if created.reserved_for:
                run_id = idempotency_keys.bound_run(created.reserved_for, digest)
            elif created.expected is not None and joining is not None:
                joining = _named(joining, *created.expected)
            else:
                break
    if created.is_new and joining is not None:
        await _end_interrupted(redis, settings, joining)
    if not created.is_new:
        await _complete_creation(redis, settings, run_id)
    return run_id


async def _complete_creation(redis: Redis, settings: Settings, run_id: str) -> None:
    """Repairs what a run that exists already may lack: its job, or its accounting after its end."""
    try:
        run = await get_run(redis, run_id)
    except RunNotFound:  # deleted since
        raise RunDeleted(run_id) from None
    if run.status is RunStatus.QUEUED:
        await run_queue.requeue(redis, run_id, run.thread_key)
    elif run.is_terminal:
        await finalize(redis, settings, run_id)


def _digest(body: bytes, thread: ThreadRequest | None) -> str:
    """Returns the digest by which a repeated request is recognised: of all that the client sent."""
    sent = hashlib.sha256(body)
    if thread is not None:
        named = [thread.identity.thread_id, thread.on_active, thread.parent_run_id]
        sent.update(orjson.dumps([named, thread.messages], option=orjson.OPT_SORT_KEYS))
    return sent.hexdigest()


def _named(joining: ThreadAdmission, active: str, interrupt: str) -> ThreadAdmission:
    """Returns the admission that names the runs which the script may have to cancel.

    Raises:
        ThreadBusy: the thread has had too many active runs since the first look.
    """
    if joining.looks == LOOKS_MAX:
        raise ThreadBusy(joining.request.identity.thread_id, active)
    return replace(joining, expected_active=active, expected_interrupt=interrupt, looks=joining.looks + 1)


async def _end_interrupted(redis: Redis, settings: Settings, joined: ThreadAdmission) -> None:
    """Ends the runs that an interrupt cancelled, if no worker holds them. If this process dies, the sweep does."""
    if joined.request.on_active is not OnActive.INTERRUPT:
        return
    for run_id in filter(None, (joined.expected_interrupt, joined.expected_active)):
        try:
            if await redis.hget(keys.run(run_id), "cancel"):  # type: ignore[misc]
                await end_unheld(redis, settings, run_id, await read_cancel_event(redis, run_id))
        except RunEnded:
            continue


async def find_by_idempotency_key(redis: Redis, tenant: str, idempotency_key: str, user: str) -> str | None:
    """Returns the id of the run that a request with this key created; None if there is none."""
    reserved = await redis.get(run_placement.idempotency_key(redis, tenant, idempotency_key, user))
    return reserved.decode().partition(" ")[0] if reserved else None


async def get_run(redis: Redis, run_id: str, owner: RunOwner | None = None) -> RunRecord:
    """Reads a run's record.

    Args:
        owner: whose run it must be; None: anyone's.

    Raises:
        RunNotFound: the owner has no such run.
    """
    if not ids.is_run_id(run_id):
        raise RunNotFound(run_id)
    if owner is None:
        fields = await redis.hgetall(keys.run(run_id))  # type: ignore[misc]
    else:
        fields = await run_scripts.read(redis, run_id, owner)
    run = decode_run(run_id, fields)
    if run is None:
        raise RunNotFound(run_id)
    return run


class RunCounts(NamedTuple):
    """The number of runs that have not ended, and how many of them are in each state.

    Attributes:
        waiting: due and not held by a worker.
        parked: waiting for a person.
        throttled: waiting for other runs of their tenant.
        running: acquired and neither ended nor given back.
    """

    active: int
    waiting: int
    parked: int
    throttled: int
    running: int


async def count_runs(redis: Redis, lease_s: float) -> RunCounts:
    """Counts the runs that have not ended, in all partitions."""
    now_ms = await read_time_ms(redis)
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitioning_of(redis).partitions:
            pipe.zcard(partition.active)
            pipe.zcount(partition.queue, "-inf", now_ms)
            # A held run is due when its lease ends. A run that is due later waits for a person.
            pipe.zcount(partition.queue, now_ms + round(lease_s * 1000) + 1, keys.THROTTLED_SCORE - 1)
            pipe.zcard(partition.throttled)
            pipe.zcard(partition.running)
        replies = await pipe.execute()
    width = len(RunCounts._fields)
    return RunCounts(*(sum(replies[place::width]) for place in range(width)))


class StoredStage(NamedTuple):
    """One stage of a run; `completed` is None until the stage is complete."""

    stage_id: str
    first_id: EventId
    completed: StageCompleted | None


async def read_stages(redis: Redis, run_id: str) -> list[StoredStage]:
    """Returns the stages that the run has begun, in order, without the journal."""
    head = await log_reader.read_head(redis, run_id)
    stage_ids = [stage_id for stage_id in head.stage_ids if stage_id != RUN_STAGE]
    ends = await log_reader.read_stage_ends(redis, run_id, stage_ids)
    return [StoredStage(first.stage_id, first.event_id, _as_completed(last)) for first, last in ends]


def _as_completed(event: StoredEvent) -> StageCompleted | None:
    if event.event != StageCompleted.event.encode():
        return None
    return StageCompleted.model_validate_json(event.data)


async def cancel_run(
    redis: Redis, settings: Settings, run_id: str, owner: RunOwner | None = None, reason: str = ""
) -> None:
    """Cancels a run in any state; an ended run stays as it is.

    If a worker holds the run, that worker ends it; otherwise this call does.

    Args:
        owner: whose run it must be; None: anyone's.
        reason: why, for people. The first one that is given stays.

    Raises:
        RunNotFound: the owner has no such run.
    """
    run = await get_run(redis, run_id, owner)
    try:
        if not await run_scripts.cancel(redis, run_id, reason, thread_of(run, settings)):
            await end_unheld(redis, settings, run_id, await read_cancel_event(redis, run_id))
    except RunEnded:
        return


async def read_cancel_event(redis: Redis, run_id: str) -> Cancel:
    """Returns the terminal event of a cancelled run, with the stored reason."""
    reason = await redis.hget(keys.run(run_id), "cancel_reason")  # type: ignore[misc]
    return Cancel(reason=reason.decode() if reason else None)


async def end_unheld(
    redis: Redis, settings: Settings, run_id: str, event: Event, guard: run_scripts.ClaimGuard = "worker"
) -> bool:
    """Ends a run that no worker holds: claims it and appends its terminal event.

    Args:
        guard: how a worker holds it: by its name in the record, or by a lease that has not expired.

    Returns:
        False if a worker holds the run. That worker ends it.

    Raises:
        RunEnded: the run has ended already.
    """
    is_parked = await redis.hget(keys.run(run_id), "status") == RunStatus.PARKED.encode()  # type: ignore[misc]
    try:
        while (
            claim := await run_scripts.claim(redis, run_id, "", guard=guard, has_webhooks=settings.has_webhooks)
        ) is not None:
            with _end_span(run_id, claim, event):
                has_ended = await end_claimed(redis, settings, run_id, claim, event)
            if has_ended:
                if is_parked:  # otherwise its job would stay in the queue until its approvals expire
                    await redis.zadd(partition_of_run(redis, run_id).queue, {run_id: 0}, xx=True)
                return True
    except Fenced:
        pass  # a worker claimed it after us and reads the stored cancel
    return False


def _end_span(run_id: str, claim: run_scripts.Claim, event: Event) -> AbstractContextManager[Span]:
    traceparent = claim.record.get(b"traceparent", b"").decode() or spans.root_of(run_id)
    attributes = {"stagebus.run.id": run_id, "stagebus.run.status": STATUS_BY_TERMINAL_EVENT[event.event].value}
    return spans.span("end", attributes=attributes, parent=Trace(traceparent=traceparent))


def terminal_state_of(
    event: Event,
    settings: Settings,
    usage: Usage | None = None,
    finish_reason: str | None = None,
    thread: ThreadEnd | None = None,
) -> run_scripts.TerminalState:
    """Returns the fields that a terminal event sets in the record.

    Args:
        thread: the end of the run's turn, without the error's code, if it is in a thread.
    """
    status, error = STATUS_BY_TERMINAL_EVENT[event.event], b""
    if isinstance(event, Error):
        error = orjson.dumps({"error": event.error, "code": event.code})
        thread = replace(thread, code=event.code) if thread else None
    usage_json = orjson.dumps(usage.model_dump(exclude_none=True)) if usage else b""
    return run_scripts.TerminalState(status, settings.retention_s, error, usage_json, finish_reason or "", thread)


async def end_claimed(redis: Redis, settings: Settings, run_id: str, claim: run_scripts.Claim, event: Event) -> bool:
    """Appends a terminal event as the owner of the claim.

    Returns:
        False if the log has lost its tail since the claim.
    """
    data = event.stamped(wall_ms()).data()
    finish_reason = finish_reason_of(await _read_begun(redis, run_id, claim), event)
    run = decode_run(run_id, claim.record)
    assert run is not None, "a claimed run has a record"
    out = (await read_turn(redis, run_id, claim.stage_ids)).encode() if run.thread_key else b""
    before, last = claim.last_id, EventId(claim.attempt, claim.last_id.sequence + 1)
    frame = sse.encode(str(last).encode(), event.event.encode(), data)
    appended = await run_scripts.append(
        redis,
        run_id,
        attempt=claim.attempt,
        before=before,
        entries=[run_scripts.LogEntry(RUN_STAGE, event.event, data)],
        message=live_batch.encode(before, last, [RUN_STAGE], [frame], is_end=True),
        end=terminal_state_of(event, settings, finish_reason=finish_reason, thread=end_of(run, settings, out=out)),
        stage_ids=claim.stage_ids,
        tenant=claim.record.get(b"tenant", b"").decode(),
    )
    if appended.is_behind:
        return False
    await finalize(redis, settings, run_id)
    return True


async def _read_begun(redis: Redis, run_id: str, claim: run_scripts.Claim) -> dict[str, StageCompleted | None]:
    """Returns the stages that a run has begun; none if its log cannot be read, since the run has to end anyway."""
    if not any(stage_id != RUN_STAGE for stage_id in claim.stage_ids):
        return {}
    try:
        return {stage.stage_id: stage.completed for stage in await read_stages(redis, run_id)}
    except REDIS_AWAY as exc:
        if is_passing(exc):
            raise
    except ValueError:
        pass
    return {}


async def finalize(redis: Redis, settings: Settings, run_id: str) -> None:
    """Cleans up after a run's end: removes it from the active runs, counts it and admits a throttled run in its place.

    All of its keys get their TTL, and its tokens are settled, in the step that removes it from the active runs.
    """
    fields = ["tenant", "idempotency", "finished_at", "tokens", "usage", "status", "last_id"]
    tenant, reserved, ended_at, tokens, usage, *state = await redis.hmget(keys.run(run_id), fields)  # type: ignore[misc]
    ended = queue_scripts.EndedRun()
    if ended_at:
        status, last_id = state
        if tokens is None:  # a worker of an older version counted only complete stages
            tokens = orjson.loads(usage)["total_tokens"] if usage else 0
        ended = queue_scripts.EndedRun(status.decode(), int(ended_at), parse_id(last_id.decode()).sequence, int(tokens))
    await queue_scripts.account(
        redis,
        run_id,
        tenant=(tenant or b"").decode(),
        ended=ended,
        retention_s=settings.retention_s,
        life_s=settings.lists_ttl_s,
        run_keys=partition_of_run(redis, run_id).all_of_run(run_id, reserved.decode() if reserved else ""),
    )
    await idempotency_keys.expire_apart(redis, run_id, (reserved or b"").decode(), settings.retention_s)
    await queue_scripts.admit(
        redis, run_id, settings.tenant_runs_running, tenant=(tenant or b"").decode(), has_ended=True
    )
