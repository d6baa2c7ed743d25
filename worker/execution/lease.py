"""The lease keeper: renews the leases of all runs that this worker holds.

It runs in a thread with its own event loop, so a tool that blocks the main loop costs no lease.
A main loop that is stuck for good is different: its runs must move on. So if the main loop has not
run for `loop_stall_max_s`, the keeper renews nothing.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import connections, queue_scripts, redis_client
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.partition_keys import Partition, partition_of_run
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.worker.execution.attempt_listener import AttemptListener

logger = logging.getLogger(__name__)

RENEWALS_PER_LEASE: Final = 3
RENEW_CONCURRENCY: Final = 32
BEAT_S: Final = 0.25
AWAY_BACKOFF_S: Final = 0.2


@dataclass(eq=False)
class HeldLease:
    """The lease of a run that this worker holds. The listener is called in the main loop.

    Attributes:
        asked_at: when the last renewal was sent that Redis answered, by the monotonic clock.
    """

    run_id: str
    token: str
    attempt: int
    listener: AttemptListener
    asked_at: float = field(default=-math.inf, init=False)


class LeaseKeeper:
    """Renews every held lease three times per lease length."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._leases: dict[str, HeldLease] = {}
        self._lock = threading.Lock()
        self._main_loop: asyncio.AbstractEventLoop | None = None
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._beat_at = time.monotonic()
        self._wake: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self._is_stopping = False

    def start(self) -> None:
        """Starts the thread. Call it in the main loop."""
        self._main_loop = asyncio.get_running_loop()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stops renewing; leases that are still held expire by themselves."""
        self._is_stopping = True
        self._wake_thread()
        self._thread.join(timeout=self._settings.redis_timeout_s + 1)

    def hold(self, lease: HeldLease) -> None:
        """Renews this lease from now on."""
        with self._lock:
            self._leases[lease.run_id] = lease

    def drop(self, lease: HeldLease) -> None:
        """Stops renewing this lease."""
        with self._lock:
            if self._leases.get(lease.run_id) is lease:
                del self._leases[lease.run_id]

    async def renew_now(self, is_wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Returns once every lease held now was renewed. Called when Redis is back after an outage.

        Args:
            is_wanted: returns whether to wait for the lease of a run. The server of another one may still be away.
        """
        began_at = time.monotonic()
        while not self._is_stopping and any(
            is_wanted(lease.run_id) and lease.asked_at < began_at for lease in self._held()
        ):
            self._wake_thread()
            await asyncio.sleep(AWAY_BACKOFF_S / 4)

    def _held(self) -> list[HeldLease]:
        with self._lock:
            return list(self._leases.values())

    def _beat(self) -> None:
        """Records that the main loop runs."""
        self._beat_at = time.monotonic()
        if self._main_loop is not None and not self._is_stopping:
            self._main_loop.call_later(BEAT_S, self._beat)

    def _wake_thread(self) -> None:
        if self._own_loop is not None and self._wake is not None and not self._own_loop.is_closed():
            self._own_loop.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        asyncio.run(self._renew_forever())

    async def _renew_forever(self) -> None:
        self._own_loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        redis = connections.connect(self._settings)
        is_away = False
        try:
            while not self._is_stopping:
                pause_s = self._settings.lease_s / RENEWALS_PER_LEASE
                try:
                    await self._renew_all(redis)
                    if is_away:
                        OUTAGE.report_recovery(logger, "leases")
                    is_away = False
                except REDIS_AWAY as exc:
                    OUTAGE.report_failure(logger, "leases", exc)
                    is_away = True
                    pause_s = AWAY_BACKOFF_S
                except Exception:
                    logger.exception("leases could not be renewed; trying again")
                    pause_s = AWAY_BACKOFF_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await redis_client.close(redis)

    async def _renew_all(self, redis: Redis) -> None:
        if time.monotonic() - self._beat_at > self._settings.loop_stall_max_s:
            logger.error("the event loop is stuck; its runs are left to other workers")
            return
        groups: dict[Partition, list[HeldLease]] = {}
        for lease in self._held():
            groups.setdefault(partition_of_run(redis, lease.run_id), []).append(lease)
        # Each group by itself: the server of one may be away.
        results = await asyncio.gather(
            *(self._renew_group(redis, group) for group in groups.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _renew_group(self, redis: Redis, leases: list[HeldLease]) -> None:
        for start in range(0, len(leases), RENEW_CONCURRENCY):
            await asyncio.gather(*(self._renew(redis, lease) for lease in leases[start : start + RENEW_CONCURRENCY]))

    async def _renew(self, redis: Redis, lease: HeldLease) -> None:
        try:
            await self._renew_one(redis, lease)
        except REDIS_AWAY as exc:
            if is_passing(exc):
                raise
            # The error concerns this run alone; the other leases are renewed.
            logger.exception("run %s: its lease cannot be renewed", lease.run_id)
            lease.asked_at = time.monotonic()

    async def _renew_one(self, redis: Redis, lease: HeldLease) -> None:
        now = time.monotonic()
        renewal = await queue_scripts.renew(
            redis,
            lease.run_id,
            token=lease.token,
            attempt=lease.attempt,
            lease_s=self._settings.lease_s,
        )
        lease.asked_at = now
        assert self._main_loop is not None, "started"
        if renewal is None:
            self._main_loop.call_soon_threadsafe(lease.listener.on_lease_lost)
        else:
            self._main_loop.call_soon_threadsafe(lease.listener.on_renewed, renewal, now)
