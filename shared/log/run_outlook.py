"""Says what a run waits for, and what would move it. No I/O.

The checks go from what overrules everything (the run has ended) to what is left (a worker takes it). Each is a function
of the situation that returns None if it does not apply.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from stagebus.shared.domain.events import (
    CallDeferred,
    Event,
    InputRequired,
    RetryScheduled,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolResult,
)
from stagebus.shared.domain.runs import TOOLS, RunStatus
from stagebus.shared.log.run_situation import QueueFacts, Situation
from stagebus.shared.log.run_story import decode_events
from stagebus.shared.runtime.spoken_duration import spoken
from stagebus.shared.storage import keys

# A worker renews a lease when a third of it has passed. With less than this share left, a renewal is overdue.
_LEASE_LEFT_MIN: Final = 0.5
_CALLS_SHOWN: Final = 5


class WaitsFor(StrEnum):
    """The reasons for which a run does not go on by itself, and the work that it does."""

    NOTHING = "nothing"  # it has ended
    CANCEL = "cancel"  # its worker, or the sweep, ends it
    SWEEP = "sweep"  # it is missing in the queue
    PERSON = "person"
    RESULT = "result"  # of a call that a client or another system runs
    THREAD = "thread"  # its turn in its conversation
    TENANT_LIMIT = "tenant_limit"
    LEASE = "lease"  # its worker is silent; another one takes it when the lease ends
    PROVIDER = "provider"
    RETRY = "retry"
    MODEL = "model"
    TOOL = "tool"
    STAGE = "stage"  # its worker is between two stages
    DUE_TIME = "due_time"
    NO_WORKER = "no_worker"
    FREE_SLOT = "free_slot"
    WORKER = "worker"  # there is a free slot; a worker takes it within a moment


class Outlook(NamedTuple):
    """The present of a run, and what would move it, in sentences."""

    waits_for: WaitsFor
    now: str
    next: str


def find_outlook(situation: Situation) -> Outlook:
    """Returns what the run does or waits for."""
    for check in _CHECKS:
        if (outlook := check(situation)) is not None:
            return outlook
    return _wait_for_worker(situation)


def _ended(situation: Situation) -> Outlook | None:
    run = situation.run
    if not run.is_terminal:
        return None
    after = f" after {spoken(run.finished_at - run.created_at)}" if run.finished_at else ""
    cause = f": {run.error['error']} ({run.error['code']})" if run.error else ""
    return Outlook(WaitsFor.NOTHING, f"{run.status}{after}{cause}", "nothing: it has ended")


def _cancelled(situation: Situation) -> Outlook | None:
    if not situation.run.cancel:
        return None
    if _is_held(situation):
        return Outlook(
            WaitsFor.CANCEL, "a cancel is requested; its worker stops the work", "its worker ends it within a moment"
        )
    return Outlook(WaitsFor.CANCEL, "a cancel is requested, and no worker holds it", _sweep_ends(situation))


def _sweep_ends(situation: Situation) -> str:
    return f"the sweep of a worker or gateway ends it within {situation.bounds.sweep_s * 1.5:g} s"


def _stranded(situation: Situation) -> Outlook | None:
    if situation.queue.score is not None or _is_held(situation):
        return None
    return Outlook(
        WaitsFor.SWEEP,
        "it has no entry in the queue, so no worker can find it",
        f"the sweep of a worker or gateway puts it back within {situation.bounds.sweep_s * 1.5:g} s",
    )


def _held(situation: Situation) -> Outlook | None:
    """Describes the work of the worker that holds the run."""
    if not _is_held(situation):
        return None
    left_ms, bounds = situation.queue.lease_left_ms, situation.bounds
    if left_ms < _LEASE_LEFT_MIN * bounds.lease_s * 1000:
        return Outlook(
            WaitsFor.LEASE,
            f"worker {situation.run.worker} has not renewed its lease in time; it may be dead, frozen or without Redis",
            f"if it stays silent, another worker takes the run in {spoken(left_ms)}",
        )
    if situation.queue.provider is not None:
        return _wait_for_provider(situation)
    return _work(situation)


def _wait_for_provider(situation: Situation) -> Outlook:
    load = situation.queue.provider
    assert load is not None, "the caller has checked it"
    if load.held_max is not None and load.held >= load.held_max:
        now = f"waits for a slot of provider {load.name}: all {load.held_max} are taken"
        then = "a request to this provider ends, over all workers; or raise its concurrency_max"
    else:
        now = f"waits for provider {load.name}: its requests or tokens of this minute are used up"
        then = "the minute passes; or raise requests_per_minute_max or tokens_per_minute_max"
    others = f"; {_counted(load.waiting, 'request')} in line" if load.waiting > 1 else ""
    return Outlook(WaitsFor.PROVIDER, now + others, then)


def _work(situation: Situation) -> Outlook:
    """Describes the work itself, from the last thing that the log says of it."""
    run, now_ms = situation.run, situation.queue.now
    events = list(decode_events(situation.events))
    limit_s = float(run.request.get("timeout_s") or 0)
    left_ms = limit_s * 1000 - (now_ms - run.started_at - run.parked_ms)
    then = f"its work goes on by itself; its time limit ends it in {spoken(left_ms)}"
    last_retry = next((event for event in reversed(events) if isinstance(event, RetryScheduled | StageRestarted)), None)
    if isinstance(last_retry, RetryScheduled) and (wait_ms := _retry_at(last_retry) - now_ms) > 0:
        now = f"waits {spoken(wait_ms)} before retry {last_retry.retry} of {last_retry.retry_of}: {last_retry.reason}"
        return Outlook(WaitsFor.RETRY, now, "its worker tries again by itself; look at the provider")
    stage = _open_stage(events)
    if stage is None:
        return Outlook(WaitsFor.STAGE, f"worker {run.worker} begins its next stage", then)
    since = f", begun {spoken(now_ms - stage.at)} ago" if stage.at else ""
    if not stage.stage_id.startswith(TOOLS):
        now = f"worker {run.worker} asks the model ({stage.stage_id}{since}); the log has {run.last_id.sequence} events"
        return Outlook(WaitsFor.MODEL, now, then)
    calls = _open_calls(events)
    if calls:
        named = [f"{call.name} for {spoken(now_ms - call.at)}" if call.at else call.name for call in calls]
        more = f" and {len(named) - _CALLS_SHOWN} more" if len(named) > _CALLS_SHOWN else ""
        now = f"worker {run.worker} runs tools ({stage.stage_id}): {', '.join(named[:_CALLS_SHOWN])}{more}"
        return Outlook(WaitsFor.TOOL, now, then)
    return Outlook(WaitsFor.STAGE, f"worker {run.worker} works on {stage.stage_id}{since}", then)


def _retry_at(event: RetryScheduled) -> float:
    return (event.at or 0) + event.backoff_s * 1000


def _open_stage(events: list[Event]) -> StageStarted | None:
    complete = {event.stage_id for event in events if isinstance(event, StageCompleted)}
    begun = [event for event in events if isinstance(event, StageStarted) and event.stage_id not in complete]
    return begun[-1] if begun else None


def _open_calls(events: list[Event]) -> list[ToolCall]:
    ended = {event.call_id for event in events if isinstance(event, ToolResult)}
    return [event for event in events if isinstance(event, ToolCall) and event.call_id not in ended]


def _parked(situation: Situation) -> Outlook | None:
    score = situation.queue.score or 0
    if not situation.pending or score <= situation.queue.now or score >= keys.THROTTLED_SCORE:
        return None
    ask, run_id = situation.pending[0], situation.run.run_id
    if isinstance(ask, InputRequired):
        what, command = "an answer to the model's question", f"stagebus answer {run_id} {ask.call_id} TEXT"
    else:
        what, command = f"the approval of {ask.name}", f"stagebus approve {run_id} {ask.call_id}, or deny"
    more = f" and {len(situation.pending) - 1} more" if len(situation.pending) > 1 else ""
    return Outlook(
        WaitsFor.PERSON,
        f"parked until a person decides: {what} (call {ask.call_id}){more}",
        f"{command}; without a decision it is denied in {spoken(ask.expires_at - situation.queue.now)}",
    )


def _deferred(situation: Situation) -> Outlook | None:
    run, events = situation.run, list(decode_events(situation.events))
    ended = {event.call_id for event in events if isinstance(event, ToolResult)}
    calls = [event for event in events if isinstance(event, CallDeferred) and event.call_id not in ended]
    if not calls or run.status is not RunStatus.PARKED or (situation.queue.score or 0) <= situation.queue.now:
        return None
    call = calls[0]
    who = "a client" if call.kind == "client" else "another system"
    more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
    return Outlook(
        WaitsFor.RESULT,
        f"parked until {who} gives the result of {call.name} (call {call.call_id}){more}",
        f"stagebus result {run.run_id} {call.call_id} TEXT; without one the call fails in "
        f"{spoken(call.expires_at - situation.queue.now)}",
    )


def _in_line(situation: Situation) -> Outlook | None:
    run_id, line, active = situation.run.run_id, situation.queue.line, situation.queue.thread_active
    if run_id not in line:
        return None
    ahead = line.index(run_id)
    before = f" and {_counted(ahead, 'other run')}" if ahead else ""
    return Outlook(
        WaitsFor.THREAD,
        f"waits in its thread behind run {active}{before}",
        f"that run ends; see stagebus explain {active}, or cancel it",
    )


def _throttled(situation: Situation) -> Outlook | None:
    queue, tenant = situation.queue, situation.run.tenant
    if queue.score is None or queue.score < keys.THROTTLED_SCORE:
        return None
    return Outlook(
        WaitsFor.TENANT_LIMIT,
        f"held back: tenant {tenant} has {_counted(queue.tenant_running, 'run')} running, and its limit is {queue.tenant_running_max}",
        f"one of them ends; or raise the limit: HSET {keys.LIMITS} {tenant}:runs_running N",
    )


def _not_due(situation: Situation) -> Outlook | None:
    score, now_ms = situation.queue.score or 0, situation.queue.now
    if score <= now_ms:
        return None
    return Outlook(
        WaitsFor.DUE_TIME, f"no worker may take it for another {spoken(score - now_ms)}", "it becomes due by itself"
    )


def _wait_for_worker(situation: Situation) -> Outlook:
    queue, bounds = situation.queue, situation.bounds
    waits = f"has waited {spoken(queue.now - _due_since(situation))} for a worker"
    lost = f"; worker {situation.run.worker} lost its lease" if situation.run.worker else ""
    ahead = f"; {_counted(queue.ahead, 'run')} before it" if queue.ahead else ""
    if not queue.workers:
        left_ms = bounds.queue_wait_max_s * 1000 - (queue.now - _due_since(situation))
        return Outlook(
            WaitsFor.NO_WORKER,
            f"{waits}{lost}, and no worker is alive",
            f"start a worker; without one it fails with queue_timeout in {spoken(left_ms)}",
        )
    if not any(worker.free_slots for worker in queue.workers):
        slots = sum(worker.concurrency for worker in queue.workers)
        return Outlook(
            WaitsFor.FREE_SLOT,
            f"{waits}{lost}{ahead}: all {_counted(slots, 'slot')} of {_workers(queue)} are held, or workers shut down",
            "a run ends; or start more workers",
        )
    return Outlook(
        WaitsFor.WORKER,
        f"{waits}{lost}{ahead}; free: {_counted(sum(worker.free_slots for worker in queue.workers), 'slot')} of {_workers(queue)}",
        f"a worker takes it within {bounds.poll_s:g} s; if it does not, look at the workers' logs",
    )


def _workers(queue: QueueFacts) -> str:
    return _counted(len(queue.workers), "worker")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _due_since(situation: Situation) -> float:
    score = situation.queue.score
    return score if score is not None and score >= keys.TIME_SCORE_MIN else situation.run.created_at


def _is_held(situation: Situation) -> bool:
    return bool(situation.run.worker) and situation.queue.lease_left_ms > 0


_CHECKS: Final[tuple[Callable[[Situation], Outlook | None], ...]] = (
    _ended, _cancelled, _stranded, _held, _parked, _deferred, _in_line, _throttled, _not_due,
)  # fmt: skip
