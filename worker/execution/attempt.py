"""One attempt at a run: owns its producer and its lease, and stops its work on an interrupt from outside."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any, Final, TypeVar

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import Fenced, StagebusError
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.storage.thread_keys import CANCEL_MESSAGE
from stagebus.shared.store.parking import DECIDED_MESSAGE
from stagebus.worker.execution.lease import HeldLease
from stagebus.worker.execution.producer import Producer
from stagebus.worker.execution.token_budget import TokenBudget

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A tool that ignores its cancellation is left behind after this time; its result is dropped.
STOP_GRACE_S: Final = 5.0


class Interrupt(StrEnum):
    """Why an attempt's work stopped before its end."""

    CANCEL = "cancel"  # a client asked
    TIMEOUT = "timeout"  # the run's own limit
    DRAIN = "drain"  # this worker shuts down


class WorkerDraining(StagebusError):
    """The work stops at this safe point because its worker shuts down; another worker continues it."""

    code = "worker_draining"
    title = "Worker is shutting down"
    retryable = True


class Attempt:
    """Owns everything that belongs to one claim of a run. Implements `AttemptListener`."""

    def __init__(
        self,
        connection: ScriptConnection,
        run_id: str,
        token: str,
        claim: Claim,
        settings: Settings,
        *,
        budget: TokenBudget,
        on_appended: Callable[[int, float], None] | None = None,
    ) -> None:
        """Creates the producer, which starts when it is entered, and the lease, which the lease keeper renews.

        Args:
            token: of the lease.
            budget: counts the run's tokens; the producer stores the count with each append.
            on_appended: see `Producer`.
        """
        self.run_id = run_id
        self.number = claim.attempt
        self.is_first = claim.last_id.sequence == 1  # no other attempt has written to the log
        self.producer = Producer(
            connection,
            run_id,
            claim.attempt,
            claim.last_id,
            stage_ids=claim.stage_ids,
            pending_max_bytes=settings.pending_max_bytes,
            listener=self,
            on_appended=on_appended,
            count_tokens=lambda: budget.tokens,
            tenant=claim.record.get(b"tenant", b"").decode(),
        )
        self.budget = budget
        self.cut_usage: Usage | None = None  # of the last request to a model, if it was stopped or failed
        self.lease = HeldLease(run_id, token, claim.attempt, self)
        self.draining = asyncio.Event()
        self.decided = asyncio.Event()  # a decision or a result may have been stored
        self._interrupt: Interrupt | None = None
        self._failure: StagebusError | None = None
        self._stopped = asyncio.Event()

    async def work(self, work: Coroutine[Any, Any, None]) -> Interrupt | None:
        """Runs the work until it ends or an interrupt stops it.

        Returns:
            The interrupt; None if the work ended by itself.

        Raises:
            Fenced, RunEnded, TailLost: nothing more may be written. Outweighs every other outcome.
            StagebusError: the work's own failure.
            Parked: the run waits for somebody outside.
        """
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(stopped)
            await cancel_and_wait(task, timeout_s=STOP_GRACE_S)
        if self._failure is not None:
            raise self._failure
        if not task.done():
            logger.error("run %s: a tool ignores its cancellation and was left behind", self.run_id)
        elif not task.cancelled():
            return self._result_of(task)
        elif self._interrupt is None:
            raise RuntimeError("the attempt's task was cancelled unexpectedly before it finished")
        return self._interrupt

    @staticmethod
    def _result_of(task: asyncio.Task[None]) -> Interrupt | None:
        try:
            task.result()
        except WorkerDraining:
            return Interrupt.DRAIN
        return None

    async def unless_draining(self, waiting: Awaitable[T]) -> T:
        """Returns the awaited result, but waits no longer than until this worker shuts down.

        Raises:
            WorkerDraining: the worker shuts down; the wait was cancelled.
        """
        wait = asyncio.ensure_future(waiting)
        drain = asyncio.create_task(self.draining.wait())
        try:
            await asyncio.wait({wait, drain}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(drain, wait)
        if wait.cancelled():
            raise WorkerDraining("while waiting")
        return wait.result()

    def stop(self, interrupt: Interrupt) -> None:
        """Interrupts the work. The first of several interrupts counts."""
        self._interrupt = self._interrupt or interrupt
        self._stopped.set()

    def on_control_message(self, message: bytes) -> None:
        """Handles a message from the run's control channel."""
        if message == CANCEL_MESSAGE:
            self.on_cancel()
        elif message == DECIDED_MESSAGE:
            self.decided.set()

    # --- AttemptListener -----------------------------------------------------

    def on_cancel(self) -> None:
        """Stops the work as a client asked."""
        self.stop(Interrupt.CANCEL)

    def on_failure(self, failure: StagebusError) -> None:
        """Stops the work because nothing more may be written. The first failure counts, and outweighs interrupts."""
        self._failure = self._failure or failure
        self._stopped.set()

    def on_renewed(self, renewal: Renewal, asked_at: float) -> None:
        """Acts on a cancel or a lost tail that the renewal shows, even while no event is on its way."""
        if renewal.cancel:
            self.on_cancel()
        self.producer.check_log_end(renewal.last_id, asked_at)

    def on_lease_lost(self) -> None:
        """Stops the work: another attempt owns the run, or the run has ended."""
        self.on_failure(Fenced(self.run_id, self.number))
