"""One attempt at a run: the task that works, and what may stop it from outside."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from enum import StrEnum
from typing import Any, Final, TypeVar

from stagebus.shared.errors import Fenced, StagebusError
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.shared.storage.run_scripts import CANCEL_MESSAGE
from stagebus.shared.store.parking import DECIDED_MESSAGE
from stagebus.worker.execution.producer import Producer

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A tool that does not heed its cancellation is left behind after this; its result is dropped.
STOP_GRACE_S: Final = 5.0


class Interrupt(StrEnum):
    """Why an attempt's work was stopped from outside."""

    CANCEL = "cancel"  # a client asked
    TIMEOUT = "timeout"  # the run's own limit
    DRAIN = "drain"  # this worker shuts down
    FAILURE = "failure"  # nothing more may be written: fenced, ended, or the log's tail is lost


class GivenBack(StagebusError):
    """The work stops here, since its worker shuts down; another goes on."""

    code = "given_back"
    title = "Worker is shutting down"
    retryable = True


class Attempt:
    """Brings interrupts, from wherever they come, to the one task that works."""

    def __init__(self, run_id: str, number: int, producer: Producer) -> None:
        self.run_id = run_id
        self.number = number
        self.producer = producer
        self.draining = asyncio.Event()
        self.decided = asyncio.Event()  # a person decided on a call
        self._interrupt: Interrupt | None = None
        self._failure: StagebusError | None = None
        self._interrupted = asyncio.Event()

    async def work(self, work: Coroutine[Any, Any, None]) -> Interrupt | None:
        """Do the work to its end or to an interrupt, which is returned.

        Raises:
            StagebusError: the work's own; or Fenced, RunEnded, TailLost: nothing more may be written.
            GivenBack: this worker shuts down.
            Parked: the run waits for a person.
        """
        task = asyncio.create_task(work)
        interrupted = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(interrupted)
            await cancel_and_wait(task, timeout_s=STOP_GRACE_S)
        if self._failure is not None:
            raise self._failure
        if not task.done():
            logger.error("run %s: a tool does not heed its cancellation and was left behind", self.run_id)
        elif not task.cancelled():
            task.result()
            return None
        elif self._interrupt is None:
            raise RuntimeError("the work was cancelled by nobody here; it has not come to its end")
        if self._interrupt is Interrupt.DRAIN:
            raise GivenBack("the worker shuts down")
        return self._interrupt

    async def unless_draining(self, waiting: Awaitable[T]) -> T:
        """Wait, but no longer than until this worker shuts down; what was waited for.

        Raises:
            GivenBack: it does; the wait was cancelled.
        """
        wait = asyncio.ensure_future(waiting)
        drain = asyncio.create_task(self.draining.wait())
        try:
            await asyncio.wait({wait, drain}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(drain, wait)
        if wait.cancelled():
            raise GivenBack("while waiting")
        return wait.result()

    def stop(self, interrupt: Interrupt) -> None:
        """Interrupt the work; the first reason stands."""
        self._interrupt = self._interrupt or interrupt
        self._interrupted.set()

    def cancel(self) -> None:
        """A client asked for a cancel."""
        self.stop(Interrupt.CANCEL)

    def hear(self, message: bytes) -> None:
        """What came over the run's control channel."""
        if message == CANCEL_MESSAGE:
            self.cancel()
        elif message == DECIDED_MESSAGE:
            self.decided.set()

    def fail(self, failure: StagebusError) -> None:
        """Nothing more may be written; that outweighs every other interrupt."""
        self._failure = self._failure or failure
        self.stop(Interrupt.FAILURE)

    def on_lease_lost(self) -> None:
        """The lease could not be renewed: another attempt owns the run, or it has ended."""
        self.fail(Fenced(self.run_id, self.number))

    def on_renewed(self, renewed: Renewal, asked_at: float) -> None:
        """The lease was renewed; a cancel or a lost tail shows there while no event is on its way."""
        if renewed.cancel:
            self.cancel()
        self.producer.compare(renewed.last_id, asked_at)
