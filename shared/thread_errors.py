"""Errors about threads: conversations of many runs, of which one at a time is active."""

from typing import Final

from stagebus.shared.access_errors import OverLimit
from stagebus.shared.errors import BadCursor, StagebusError

SHOWN_MAX_CHARS: Final = 64


class BadThreadCursor(BadCursor):
    """The `Last-Event-ID` is not the id of an event of a thread."""

    def __init__(self) -> None:
        StagebusError.__init__(
            self, "the cursor of a thread must be a run's id and an event's id, <run id>.5204-118, or 0 for the start"
        )


class ThreadNotFound(StagebusError):
    """The thread does not exist, belongs to somebody else, or was deleted, by a request or after its retention time."""

    code = "thread_not_found"
    title = "Thread not found"
    status_hint = 404

    def __init__(self, thread_id: str) -> None:
        super().__init__(
            f"there is no thread {thread_id[:SHOWN_MAX_CHARS]!r}: it never existed, was deleted, or its retention time is "
            "over; POST /runs with this thread_id creates it"
        )


class ThreadBusy(StagebusError):
    """A run of the thread is active, or others wait for their turn. `run_id` names the run, `request_digest` its request."""

    code = "thread_busy"
    title = "Thread is busy"
    status_hint = 409
    run_id = ""
    request_digest = ""

    def __init__(self, thread_id: str, run_id: str, request_digest: str = "") -> None:
        super().__init__(
            f"the run {run_id} of the thread {thread_id[:SHOWN_MAX_CHARS]!r} has not ended: wait for its end, cancel it, "
            "or set on_active to enqueue, interrupt or steer"
        )
        self.run_id = run_id
        self.request_digest = request_digest


class ThreadDeleting(StagebusError):
    """The thread is being deleted. Once that is done, its id stands for a new thread."""

    code = "thread_deleting"
    title = "Thread is being deleted"
    status_hint = 409
    retryable = True

    def __init__(self, thread_id: str) -> None:
        super().__init__(
            f"the thread {thread_id[:SHOWN_MAX_CHARS]!r} is being deleted: try again in a few seconds, or use another thread_id"
        )


class ThreadFull(StagebusError):
    """The thread has as many turns, or as many bytes of messages, as a thread may have."""

    code = "thread_full"
    title = "Thread is full"
    status_hint = 409

    def __init__(self, thread_id: str) -> None:
        super().__init__(
            f"the thread {thread_id[:SHOWN_MAX_CHARS]!r} has as many turns or bytes as a thread may have: continue in "
            "another one, whose first run has the messages that still matter"
        )


class ThreadQueueFull(OverLimit):
    """As many runs of the thread wait for their turn as may wait."""

    code = "thread_queue_full"
    title = "Too many waiting runs in the thread"

    def __init__(self, thread_id: str, limit: int) -> None:
        super().__init__(
            f"{limit} runs of the thread {thread_id[:SHOWN_MAX_CHARS]!r} wait for their turn, which is the limit: try again "
            "when one has started, or cancel some"
        )


class ParentNotFound(StagebusError):
    """The thread has no turn of the run that `parent_run_id` names, or that run was deleted before its turn."""

    code = "parent_not_found"
    title = "Parent run not found"
    status_hint = 404

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the thread has no turn of the run {run_id[:SHOWN_MAX_CHARS]!r}: GET /threads/{{thread_id}} lists its turns; "
            "`root` begins a new branch"
        )


class ParentNotEnded(StagebusError):
    """The run that `parent_run_id` names still waits for its turn, so nothing can follow it yet."""

    code = "parent_not_ended"
    title = "Parent run has not ended"
    status_hint = 409

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the run {run_id[:SHOWN_MAX_CHARS]!r} has not ended: wait for its end, or leave parent_run_id out to follow the "
            "thread's newest turn"
        )


class ThreadsUnavailable(StagebusError):
    """Some of the workers are of a version that does not know threads. It passes when all of them are updated."""

    code = "threads_unavailable"
    title = "Threads are not available yet"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "not all workers know threads: the operator is updating them, or has to; try again, or send the whole "
            "conversation as messages, without thread_id"
        )


class RunMerged(StagebusError):
    """The run's messages joined another run, `run_id`, and can only be deleted together with it."""

    code = "merged"
    title = "Run is part of another run"
    status_hint = 409
    run_id = ""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the messages of this run are part of the run {run_id}: delete that run")
        self.run_id = run_id


class TurnNotCome(StagebusError):
    """The run waits for its turn in its thread. The worker that acquired it has given it back."""

    code = "turn_not_come"
    title = "Run waits for its turn"
    status_hint = 409

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the run {run_id} waits for its turn in its thread")
