"""Finds due runs and acquires their leases."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container
from typing import Final
from uuid import uuid4

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import queue_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.shared.store import run_queue
from stagebus.worker.execution.doorbell import Doorbell

logger = logging.getLogger(__name__)

ACQUIRE_CONCURRENCY: Final = 64


class RunAcquirer:
    """Acquires due runs for a worker. No acquired lease is lost: a request without an answer is sent again."""

    def __init__(
        self,
        redis: Redis,
        connection: PipelinedConnection,
        settings: Settings,
        *,
        held: Container[str],
        on_acquired: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """Create it in the event loop that runs it.

        Args:
            connection: for the queue's scripts.
            held: the runs that this worker works on.
            on_acquired: called with each acquired run and the token of its lease.
        """
        self._redis = redis
        self._connection = connection
        self._settings = settings
        self._held = held
        self._on_acquired = on_acquired
        self._doorbell = Doorbell(redis)
        self._notified_run: str | None = None  # the run that the bell rang for
        self._pending_acquires: dict[str, str] = {}  # token by run id: Redis has not answered yet
        self._acquiring: set[asyncio.Task[bool]] = set()
        # Runs with a defect that keeps Redis from granting their lease, since the last wait. The others go on.
        self._refused: set[str] = set()
        self._skipped = 0  # due runs of the last look that were held or refused; the next look asks for more

    async def acquire_due(self, free_slots: int) -> float | None:
        """Acquires up to `free_slots` due runs.

        Returns:
            The seconds until more runs may be due; None if more may be due now.
        """
        if self._pending_acquires:
            await asyncio.gather(*map(self._acquire, list(self._pending_acquires)[:free_slots]))
            return None
        notified, self._notified_run = self._notified_run, None
        limit = min(free_slots, ACQUIRE_CONCURRENCY) + self._skipped
        # Both in one write. The worker waits for the bell only if nothing else was due, so the notified run passes
        # no other run by.
        is_acquired, due = await asyncio.gather(
            self._acquire(notified), queue_scripts.list_due(self._connection, limit)
        )
        others = [run_id for run_id in due.run_ids if run_id not in self._held and run_id not in self._refused]
        self._skipped = len(due.run_ids) - len(others)
        free_slots -= is_acquired
        acquired = await asyncio.gather(*map(self._acquire, others[:free_slots]))
        if any(acquired) or len(due.run_ids) >= limit or free_slots <= 0:
            return None
        return min(due.next_ms / 1000 if due.next_ms >= 0 else self._settings.poll_s, self._settings.poll_s)

    async def wait(self, timeout_s: float) -> None:
        """Waits until the bell rings for a run that is not held, or the time is over."""
        self._refused.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        # A burst of runs that was acquired with one look leaves its bells behind: they end no wait.
        while (notified := await self._doorbell.wait(deadline - loop.time())) in self._held:
            pass
        self._notified_run = notified

    async def stop(self) -> None:
        """Stops waiting; passes a bell on that may have rung for this worker."""
        await self._doorbell.close()
        try:
            await run_queue.ring(self._redis, self._notified_run or "")
        except REDIS_AWAY:
            logger.debug("Redis is down; other workers poll")

    async def settle(self) -> None:
        """Awaits the requests under way and repeats those without an answer. If Redis is down, the leases expire."""
        await asyncio.gather(*self._acquiring, return_exceptions=True)
        await asyncio.gather(*map(self._acquire, list(self._pending_acquires)), return_exceptions=True)

    async def _acquire(self, run_id: str | None) -> bool:
        """Acquires one run unless it is held: a held run that is due lost its lease and is left to other workers."""
        if not run_id or run_id in self._held:
            return False
        # Shielded from a cancellation of the caller: an acquired run that no one knows of would wait for the end of
        # its lease.
        task = asyncio.create_task(self._acquire_shielded(run_id))
        self._acquiring.add(task)
        task.add_done_callback(self._acquiring.discard)
        return await asyncio.shield(task)

    async def _acquire_shielded(self, run_id: str) -> bool:
        token = self._pending_acquires.setdefault(run_id, uuid4().hex)
        settings = self._settings
        try:
            is_acquired = await queue_scripts.acquire(
                self._connection, run_id, token, settings.lease_s, settings.tenant_runs_running
            )
        except REDIS_AWAY as exc:
            if is_passing(exc):
                raise
            logger.exception("run %s cannot be acquired", run_id)
            self._refused.add(run_id)
            is_acquired = False
        # Two requests with one token may be under way; the first answer counts.
        if self._pending_acquires.pop(run_id, None) is None or not is_acquired:
            return False
        await self._on_acquired(run_id, token)
        return True
