"""An attempt that only records what its producer and the lease keeper report."""

import asyncio
from collections.abc import Callable

from stagebus.shared.errors import StagebusError
from stagebus.shared.storage.queue_scripts import Renewal


class AttemptRecorder:
    """Implements `AttemptListener`."""

    def __init__(self) -> None:
        self.cancels = 0
        self.failures: list[StagebusError] = []
        self.renewals: list[Renewal] = []
        self.losses = 0
        self.changed = asyncio.Event()

    def on_cancel(self) -> None:
        self.cancels += 1
        self.changed.set()

    def on_failure(self, failure: StagebusError) -> None:
        self.failures.append(failure)
        self.changed.set()

    def on_renewed(self, renewal: Renewal, asked_at: float) -> None:
        self.renewals.append(renewal)
        self.changed.set()

    def on_lease_lost(self) -> None:
        self.losses += 1
        self.changed.set()

    async def until(self, condition: Callable[["AttemptRecorder"], object], timeout_s: float = 10) -> None:
        """Wait until the condition holds."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()
