"""The facts from which a run's situation is explained: its record, its log, the queue, the workers. No I/O."""

from collections.abc import Sequence
from typing import NamedTuple

from stagebus.shared.domain.events import ApprovalRequired, InputRequired
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.log.log_page import StoredEvent


class LiveWorker(NamedTuple):
    """A worker with a recent heartbeat.

    Attributes:
        held: the number of runs that it holds.
    """

    name: str
    concurrency: int
    held: int
    is_draining: bool = False

    @property
    def free_slots(self) -> int:
        """Returns how many further runs it would take now."""
        return 0 if self.is_draining else max(0, self.concurrency - self.held)


class ProviderLoad(NamedTuple):
    """A provider for which the run's request waits, and how many slots are held and requests waiting, over all workers.

    Attributes:
        held_max: the number of slots; None if the provider limits only the requests or tokens of a minute.
    """

    name: str
    held: int
    waiting: int
    held_max: int | None


class QueueFacts(NamedTuple):
    """The run's place in the queue, and the processes. Times are Unix ms by the clock of Redis.

    Attributes:
        score: the run's score in the queue; None if it has no entry.
        lease_left_ms: until its lease ends; 0 or less if it has none.
        ahead: how many due runs are before it.
        provider: set if its worker says that its request waits for a provider.
        tenant_running: how many runs of its tenant are running.
        tenant_running_max: the tenant's limit; 0: none.
        thread_active: the run that has the turn in this run's thread; empty if it is not in a thread, or none has.
        line: the runs that wait for their turn in the thread, in order.
    """

    now: int
    score: float | None
    lease_left_ms: int
    ahead: int
    workers: Sequence[LiveWorker]
    provider: ProviderLoad | None = None
    tenant_running: int = 0
    tenant_running_max: int = 0
    thread_active: str = ""
    line: Sequence[str] = ()


class Bounds(NamedTuple):
    """The settings that decide when something happens without anybody's doing."""

    lease_s: float
    poll_s: float
    sweep_s: float
    queue_wait_max_s: float
    run_tries_max: int


class Situation(NamedTuple):
    """Everything that is known of a run.

    Attributes:
        events: of its journal, the first and last of each stage, and all of its last tools stage; in order.
        pending: the calls that wait for a person.
    """

    run: RunRecord
    events: Sequence[StoredEvent]
    pending: Sequence[ApprovalRequired | InputRequired]
    queue: QueueFacts
    bounds: Bounds
