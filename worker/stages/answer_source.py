"""The answers from outside that a tools stage may wait for: decisions on its calls, and results of them."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from stagebus.shared.domain.call_results import CallLease, CallResult
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.errors import StagebusError
from stagebus.shared.store.parking import Seen
from stagebus.worker.tools.tool_results import Deferred, RemoteTask


class AnswerSnapshot(NamedTuple):
    """The answers stored so far, read at once.

    Attributes:
        decisions: on all calls of the run, by call id.
        results: of the calls that were asked for, by call id.
        leases: of clients on these calls, by call id.
        now_ms: Redis's time, Unix ms.
        seen: what `park` needs to find out whether more has come.
    """

    decisions: Mapping[str, Decision]
    results: Mapping[str, CallResult]
    leases: Mapping[str, CallLease]
    now_ms: int
    seen: Seen


class AnswerSource(Protocol):
    """Reads and ends what the calls of one stage wait for."""

    async def read(self, call_ids: Collection[str] = ()) -> AnswerSnapshot:
        """Returns all decisions, and the results and leases of these calls."""

    async def expire(self, call_id: str) -> Decision:
        """Denies an expired call, unless a person was faster; returns the decision that counts."""

    async def deliver(self, call_id: str, result: CallResult) -> CallResult:
        """Stores the result of a call, unless it has one; returns the result that counts."""

    async def keep_task(self, call_id: str, task: RemoteTask, wait_s: float) -> None:
        """Stores the task that a call has become; a worker then asks for its result for `wait_s`."""

    async def find_task(self, call_id: str) -> Deferred | None:
        """Returns the wait for the task that an earlier attempt at the call has stored, if there is one."""

    async def wait_for_change(self) -> None:
        """Returns when another `read` may find more."""


class Parked(StagebusError):
    """Every call that is left waits for a decision or a result; the run leaves its worker.

    Attributes:
        due_ms: when the first of its calls expires, Unix ms by Redis's clock.
        seen: the decisions and results that were known.
    """

    code = "parked"
    title = "The run waits for somebody outside"

    def __init__(self, due_ms: int, seen: Seen) -> None:
        super().__init__("the run waits for a person, a client or another system")
        self.due_ms = due_ms
        self.seen = seen
