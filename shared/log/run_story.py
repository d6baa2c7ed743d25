"""Tells what has happened to a run, as lines for people, from its log and its record. No I/O.

    +0.0 s   created for the model demo
    +2.0 s   taken by worker host:4711:9f3c21 after 2.0 s in the queue (attempt 2031)
    +2.1 s   extraction began
    +9.6 s   taken by worker host:4712:77aa01: the worker before lost its lease (attempt 9612)

The log does not say why a claim followed another: the record counts those that followed a lost lease (`tries`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from pydantic import ValidationError

from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    CallDeferred,
    Cancel,
    Done,
    Error,
    Event,
    InputRequired,
    RetryScheduled,
    RunQueued,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    TimedEvent,
    ToolCall,
    ToolResult,
    decode,
)
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.runtime.spoken_duration import spoken

# A run of many rounds has hundreds of events; its beginning and its end say where it is.
LINES_MAX: Final = 80
_FIRST_LINES: Final = 20
_ERROR_MAX_CHARS: Final = 300


class StoryLine(NamedTuple):
    """Something that happened, and when, Unix ms."""

    at: int
    text: str


class _Teller:
    """Folds the events of a run into lines."""

    def __init__(self, run: RunRecord, *, losses: int, returns: int) -> None:
        self._run = run
        # How many claims followed a lost lease, and how many followed a run that was given back.
        self._losses = losses
        self._returns = returns
        self._worker = ""
        self._is_parked = False
        self._calls: dict[str, str] = {}

    def tell(self, event: Event) -> str:
        """Returns the line of an event; empty if it says nothing about where the run is."""
        tell: Callable[..., str] | None = _TELL.get(type(event))
        return tell(self, event) if tell else ""

    def queued(self, event: RunQueued) -> str:
        return f"created for the model {event.model}"

    def started(self, event: RunStarted) -> str:
        text = f"taken by worker {event.worker}"
        if not self._worker:
            text += f" after {spoken(self._run.started_at - self._run.created_at)} in the queue"
        elif self._is_parked:
            text += " again, after it was parked"
        elif self._worker == event.worker:
            text += " again: Redis had lost the end of the log"
        elif not self._losses:
            text += ": the worker before gave it back"
        elif not self._returns:
            text += ": the worker before lost its lease"
        else:
            text += ": the worker before lost its lease or gave it back"
        self._worker, self._is_parked = event.worker, False
        return f"{text} (attempt {event.attempt})"

    def stage_started(self, event: StageStarted) -> str:
        return f"{event.stage_id} began"

    def stage_restarted(self, event: StageRestarted) -> str:
        return f"{event.stage_id} began again"

    def stage_completed(self, event: StageCompleted) -> str:
        took = "" if event.duration_ms is None else f" after {spoken(event.duration_ms)}"
        return f"{event.stage_id} is complete{took}"

    def retry(self, event: RetryScheduled) -> str:
        instead = f" with {event.model}" if event.model else ""
        return f"{event.retry_of} failed; retry {event.retry}{instead} in {event.backoff_s:.1f} s: {event.reason}"

    def asked(self, event: ApprovalRequired | InputRequired) -> str:
        self._is_parked = True
        if isinstance(event, InputRequired):
            return f"asks a person a question (call {event.call_id})"
        self._calls[event.call_id] = event.name
        return f"asks for the approval of {event.name} (call {event.call_id})"

    def deferred(self, event: CallDeferred) -> str:
        self._is_parked = True
        who = "a client" if event.kind == "client" else "another system"
        return f"waits for {who} to give the result of {event.name} (call {event.call_id})"

    def decided(self, event: ApprovalDecided) -> str:
        if event.is_expired:
            return f"call {event.call_id} is denied: nobody decided in time"
        words = {"approve": "approved", "deny": "denied", "answer": "answered"}[event.decision]
        return f"call {event.call_id} is {words}"

    def called(self, event: ToolCall) -> str:
        return f"calls {event.name} (call {event.call_id})"

    def result(self, event: ToolResult) -> str:
        outcome = "failed" if event.is_error else "has its result"
        return f"{event.name} {outcome} after {spoken(event.duration_ms)} (call {event.call_id})"

    def done(self, _event: Done) -> str:
        return "done"

    def cancelled(self, event: Cancel) -> str:
        return f"cancelled: {event.reason}" if event.reason else "cancelled"

    def failed(self, event: Error) -> str:
        stage = f" in {event.failed_stage}" if event.failed_stage else ""
        return f"failed{stage}: {event.error[:_ERROR_MAX_CHARS]} ({event.code})"


_TELL: Final[dict[type[Event], Callable[..., str]]] = {
    RunQueued: _Teller.queued,
    RunStarted: _Teller.started,
    StageStarted: _Teller.stage_started,
    StageRestarted: _Teller.stage_restarted,
    StageCompleted: _Teller.stage_completed,
    RetryScheduled: _Teller.retry,
    ApprovalRequired: _Teller.asked,
    InputRequired: _Teller.asked,
    CallDeferred: _Teller.deferred,
    ApprovalDecided: _Teller.decided,
    ToolCall: _Teller.called,
    ToolResult: _Teller.result,
    Done: _Teller.done,
    Cancel: _Teller.cancelled,
    Error: _Teller.failed,
}


def decode_events(stored: Iterable[StoredEvent]) -> Iterator[Event]:
    """Yields the events that this version can read; a newer version's are left out."""
    for event in stored:
        try:
            yield decode(event.event.decode(), event.data)
        except (KeyError, ValidationError):
            continue


def tell_story(run: RunRecord, stored: Iterable[StoredEvent]) -> list[StoryLine]:
    """Returns what has happened to a run, oldest first, at most `LINES_MAX` lines.

    Args:
        stored: events of its log, in order; those of model output may be left out.
    """
    events = list(decode_events(stored))
    claims = _count_takeovers(events)
    teller = _Teller(run, losses=min(run.tries, claims), returns=max(0, claims - run.tries))
    lines: list[StoryLine] = []
    for event in events:
        if text := teller.tell(event):
            at = event.at if isinstance(event, TimedEvent) and event.at else lines[-1].at if lines else run.created_at
            lines.append(StoryLine(at, text))
    left_out = len(lines) - LINES_MAX
    if left_out > 0:
        cut = StoryLine(lines[_FIRST_LINES].at, f"… {left_out + 1} more lines …")
        lines[_FIRST_LINES : _FIRST_LINES + left_out + 1] = [cut]
    return lines


def _count_takeovers(events: Iterable[Event]) -> int:
    """Returns how many claims followed another worker's, except after the run was parked."""
    worker, is_parked, count = "", False, 0
    for event in events:
        if isinstance(event, ApprovalRequired | InputRequired | CallDeferred):
            is_parked = True
        elif isinstance(event, RunStarted):
            count += bool(worker) and not is_parked and worker != event.worker
            worker, is_parked = event.worker, False
    return count
