"""Finds due runs in the queues of all partitions and acquires their leases."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar
from uuid import uuid4

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import queue_scripts
from stagebus.shared.storage.connections import SharedConnection
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.store import run_queue
from stagebus.worker.execution.partition_bells import open_bell
from stagebus.worker.execution.partition_queue import Look, PartitionQueue, choose

logger = logging.getLogger(__name__)

T = TypeVar("T")

ACQUIRE_CONCURRENCY: Final = 64
# Renews the held leases of the runs for which its argument returns True.
RenewNow = Callable[[Callable[[str], bool]], Awaitable[None]]
# A wait may end this much earlier than the time for which it was asked.
_EARLY_S: Final = 0.02


class RunAcquirer:
    """Acquires due runs for a worker. No acquired lease is lost: a request without an answer is sent again.

    If the server of some partitions is away, the worker goes on with the others.
    """

    def __init__(
        self,
        redis: Redis,
        connection: SharedConnection,
        settings: Settings,
        *,
        held: Container[str],
        on_acquired: Callable[[str, str], Awaitable[None]],
        renew_now: RenewNow,
    ) -> None:
        """Create it in the event loop that runs it.

        Args:
            connection: for the queue's scripts.
            held: the runs that this worker works on.
            on_acquired: called with each acquired run and the token of its lease.
            renew_now: renews the held leases, before this worker acquires runs of a partition whose server was away.
        """
        self._redis = redis
        self._connection = connection
        self._settings = settings
        self._held = held
        self._on_acquired = on_acquired
        self._renew_now = renew_now
        self._partitioning = partitioning_of(redis)
        self._queues = {partition: PartitionQueue(partition) for partition in self._partitioning.partitions}
        self._doorbell = open_bell(redis, [partition.wakeup for partition in self._queues])
        self._pending_acquires: dict[str, str] = {}  # token by run id: Redis has not answered yet
        self._acquiring: set[asyncio.Task[bool]] = set()
        # Runs with a defect that keeps Redis from granting their lease, since the last wait. The others go on.
        self._refused: set[str] = set()

    async def acquire_due(self, free_slots: int) -> float | None:
        """Acquires up to `free_slots` due runs.

        Returns:
            The seconds until more runs may be due; None if more may be due now.

        Raises:
            RedisError, OSError: no partition can be used.
        """
        pending = [run_id for run_id in self._pending_acquires if self._queue_of(run_id).recovery is None]
        if pending:
            await self._acquire_each(pending[:free_slots])
            return None
        now = asyncio.get_running_loop().time()
        usable = [queue for queue in self._queues.values() if queue.recovery is None]
        due = [queue for queue in usable if queue.look_at <= now + _EARLY_S]
        if due:
            await self._look_and_acquire(due, free_slots)
        now = asyncio.get_running_loop().time()
        pause_s = min((queue.look_at for queue in usable), default=now + self._settings.poll_s) - now
        return pause_s if pause_s > 0 else None

    async def _look_and_acquire(self, queues: Sequence[PartitionQueue], free_slots: int) -> None:
        limit = max(1, min(free_slots, ACQUIRE_CONCURRENCY) // len(queues))
        replies = await self._of_each(queues, [self._look(queue, limit) for queue in queues])
        looks = [reply for reply in replies if reply is not None]
        free_slots -= sum(look.is_acquired for look in looks)
        acquired = await self._acquire_each(choose(looks, free_slots))
        now = asyncio.get_running_loop().time()
        for look in looks:
            look.queue.look_at = self._next_look(look, acquired, now)
        if len(acquired) >= free_slots:  # bells for other partitions ring unheard meanwhile
            for queue in self._queues.values():
                queue.look_soon()

    def _next_look(self, look: Look, acquired: set[str], now: float) -> float:
        """Returns when to look at the queue again."""
        is_served = any(run_id in acquired for _, run_id in look.others)
        if is_served:
            look.queue.served_at = now
        if is_served or len(look.due.run_ids) >= look.limit:
            return now
        pause_s = look.due.next_ms / 1000 if look.due.next_ms >= 0 else self._settings.poll_s
        return now + min(pause_s, self._settings.poll_s)

    async def _look(self, queue: PartitionQueue, limit: int) -> Look:
        notified, queue.notified_run = queue.notified_run, None
        limit += queue.skipped
        list_due = queue_scripts.list_due if len(self._queues) == 1 else queue_scripts.list_due_with_lags
        # Both in one write. The worker waits for the bell only if nothing else was due, so the notified run passes
        # no other run by.
        is_acquired, due = await asyncio.gather(
            self._acquire(notified), list_due(self._connection, limit, queue.partition)
        )
        others = [
            (lag, run_id)
            for run_id, lag in zip(due.run_ids, due.lags, strict=True)
            if run_id not in self._held and run_id not in self._refused
        ]
        queue.skipped = len(due.run_ids) - len(others)
        return Look(queue, is_acquired, limit, due, others)

    async def wait(self, timeout_s: float) -> None:
        """Waits until the bell rings for a run that is not held, or the time is over."""
        self._refused.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        # A burst of runs that was acquired with one look leaves its bells behind: they end no wait.
        while (notified := await self._doorbell.wait(deadline - loop.time())) in self._held:
            pass
        if notified:
            queue = self._queue_of(notified)
            queue.notified_run = notified
            queue.look_soon()
        elif notified is not None:
            for queue in self._queues.values():
                queue.look_soon()

    async def stop(self) -> None:
        """Stops waiting; passes bells on that may have rung for this worker."""
        await cancel_and_wait(*(queue.recovery for queue in self._queues.values() if queue.recovery is not None))
        await self._doorbell.close()
        rings = (
            run_queue.ring(self._redis, queue.notified_run or "", queue.partition) for queue in self._queues.values()
        )
        for result in await asyncio.gather(*rings, return_exceptions=True):
            if isinstance(result, REDIS_AWAY):
                logger.debug("Redis is down; other workers poll")
            elif isinstance(result, BaseException):
                raise result

    async def settle(self) -> None:
        """Awaits the requests under way and repeats those without an answer. If Redis is down, the leases expire."""
        await asyncio.gather(*self._acquiring, return_exceptions=True)
        await asyncio.gather(*map(self._acquire, list(self._pending_acquires)), return_exceptions=True)

    # --- partitions whose server is away ---------------------------------------

    def _queue_of(self, run_id: str) -> PartitionQueue:
        return self._queues[self._partitioning.of_run(run_id)]

    async def _of_each(self, queues: Sequence[PartitionQueue], asked: Iterable[Awaitable[T]]) -> list[T | None]:
        """Returns the reply for each queue; None where its server is away, for which the others do not wait.

        Raises:
            RedisError, OSError: no partition can be used.
        """
        replies = await asyncio.gather(*asked, return_exceptions=True)
        failures: dict[PartitionQueue, Exception] = {}
        for queue, reply in zip(queues, replies, strict=True):
            if isinstance(reply, REDIS_AWAY):
                failures[queue] = reply
            elif isinstance(reply, BaseException):
                raise reply
        if failures and all(queue in failures or queue.recovery is not None for queue in self._queues.values()):
            raise next(iter(failures.values()))
        for queue, failure in failures.items():
            OUTAGE.report_failure(logger, f"the queue {queue.partition.queue}", failure)
            if queue.recovery is None:
                queue.recovery = asyncio.create_task(self._recover(queue))
        return [None if isinstance(reply, BaseException) else reply for reply in replies]

    async def _recover(self, queue: PartitionQueue) -> None:
        """Waits until the partition's server is back and leases that expired meanwhile are renewed by their holders."""
        name = queue.partition.queue
        try:
            await retry_while_redis_is_down(
                partial(self._redis.zcard, name), f"the queue {name}", is_retryable=lambda _: True
            )
            await self._renew_now(lambda run_id: self._queue_of(run_id) is queue)
            await asyncio.sleep(self._settings.lease_s / 3)
        finally:
            queue.recovery = None
            queue.look_soon()

    # --- leases ------------------------------------------------------------------

    async def _acquire_each(self, run_ids: Sequence[str]) -> set[str]:
        """Acquires the runs and returns those that were acquired."""
        queues = [self._queue_of(run_id) for run_id in run_ids]
        replies = await self._of_each(queues, map(self._acquire, run_ids))
        return {run_id for run_id, is_acquired in zip(run_ids, replies, strict=True) if is_acquired}

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
