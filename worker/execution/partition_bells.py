"""The bells of a cluster's partitions: a blocking pop for each of them, at the node that has it."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from stagebus.shared.domain.partitions import key_slot
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.worker.execution.doorbell import Doorbell

logger = logging.getLogger(__name__)

POP_S: Final = 30.0
# After an error at its node a bell is tried again after this time; until then the polls find its runs.
REST_S: Final = 1.0


class PartitionBells:
    """As `Doorbell`, on a cluster. A node that is away silences its own bells only."""

    def __init__(self, redis: ClusterRedis, wakeups: Sequence[str]) -> None:
        self._redis = redis
        self._wakeups = wakeups
        self._bells: dict[str, tuple[object, Doorbell]] = {}  # by list, with the node
        self._pops: dict[str, asyncio.Task[str | None]] = {}
        self._passing_on: set[asyncio.Task[None]] = set()
        self._is_waiting = False

    async def wait(self, timeout_s: float) -> str | None:
        """Waits until a bell rings or the time is over.

        Returns:
            The run that the bell rang for; None if none rang.
        """
        for wakeup in self._wakeups:
            if wakeup not in self._pops:
                pop = self._pops[wakeup] = asyncio.create_task(self._pop(wakeup))
                pop.add_done_callback(partial(self._on_popped, wakeup))
        self._is_waiting = True
        try:
            await asyncio.wait(self._pops.values(), timeout=max(timeout_s, 0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_waiting = False
        return self._take()

    def _take(self) -> str | None:
        """Returns the run of one bell that rang; others that did are passed on."""
        taken: str | None = None
        for wakeup, pop in list(self._pops.items()):
            if pop.done() and taken is None:
                del self._pops[wakeup]
                taken = pop.result()
            else:
                self._on_popped(wakeup, pop)
        return taken

    def _on_popped(self, wakeup: str, pop: asyncio.Task[str | None]) -> None:
        """Passes a bell on that rang while this worker was not waiting: others may have free slots."""
        if self._is_waiting or not pop.done() or pop.cancelled() or self._pops.get(wakeup) is not pop:
            return
        del self._pops[wakeup]
        notified = pop.result()
        if notified is not None:
            task = asyncio.create_task(self._pass_on(wakeup, notified))
            self._passing_on.add(task)
            task.add_done_callback(self._passing_on.discard)

    async def _pass_on(self, wakeup: str, notified: str) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.rpush(wakeup, notified)
                pipe.ltrim(wakeup, -keys.WAKEUPS_MAX, -1)
                await pipe.execute()
        except REDIS_AWAY as exc:
            logger.debug("%s: a bell is lost (%s); other workers poll", wakeup, exc)

    async def _pop(self, wakeup: str) -> str | None:
        try:
            return await (await self._bell_of(wakeup)).wait(POP_S)
        except REDIS_AWAY as exc:
            logger.debug("%s: cannot wait (%s); trying again", wakeup, exc)
            self._redis.slots.refresh_soon()  # perhaps another node has it by now
            await asyncio.sleep(REST_S)
            return None

    async def _bell_of(self, wakeup: str) -> Doorbell:
        node = await self._redis.slots.find_node(key_slot(wakeup))
        known = self._bells.get(wakeup)
        if known is None or known[0] != node:
            if known is not None:
                await known[1].close()
            known = self._bells[wakeup] = (node, Doorbell(self._redis.client_of(node), [wakeup]))
        return known[1]

    async def close(self) -> None:
        """Closes the connections."""
        pops, self._pops = self._pops, {}
        await cancel_and_wait(*pops.values(), *self._passing_on)
        for _, bell in self._bells.values():
            await bell.close()


def open_bell(redis: Redis, wakeups: Sequence[str]) -> Doorbell | PartitionBells:
    """Returns the bell that entries of these lists ring."""
    return PartitionBells(redis, wakeups) if isinstance(redis, ClusterRedis) else Doorbell(redis, wakeups)
