"""The lease keeper: renews the leases of all runs that this worker holds.

It lives in a thread with an event loop of its own, so that a tool that keeps the main
loop busy loses nothing. A main loop that is stuck for good is another matter: its runs
must move on, so a loop that has not stirred for `loop_stall_max_s` gets no renewals.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import queue_scripts, redis_client
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing

logger = logging.getLogger(__name__)

RENEWALS_A_LEASE: Final = 3
RENEW_CONCURRENCY: Final = 32
BEAT_S: Final = 0.25
AWAY_BACKOFF_S: Final = 0.2


@dataclass(eq=False)
class HeldLease:
    """A run that this worker holds. The callbacks run in the main loop.

    `on_renewed` also gets the monotonic time at which the renewal was asked for.
    """

    run_id: str
    token: str
    attempt: int
    stage_ids: Sequence[str]
    on_renewed: Callable[[Renewal, float], None]
    on_lost: Callable[[], None]
    ttl_renewed_at: float = -math.inf  # the run may have waited for most of its TTL


class LeaseKeeper:
    """Renews every held lease each third of its length."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: dict[str, HeldLease] = {}
        self._lock = threading.Lock()
        self._main: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._beat_at = time.monotonic()
        self._wake: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self._is_stopping = False
        self._passes = 0

    def start(self) -> None:
        """Start the thread; call from the main loop."""
        self._main = asyncio.get_running_loop()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; leases that are still held run out by themselves."""
        self._is_stopping = True
        self._wake_thread()
        self._thread.join(timeout=self._settings.redis_timeout_s + 1)

    def hold(self, held: HeldLease) -> None:
        """Renew this lease from now on."""
        with self._lock:
            self._held[held.run_id] = held

    def drop(self, held: HeldLease) -> None:
        """Renew it no more."""
        with self._lock:
            if self._held.get(held.run_id) is held:
                del self._held[held.run_id]

    async def renew_now(self) -> None:
        """Return once every lease held now was renewed; after Redis was away."""
        passes = self._passes
        while self._passes < passes + 2 and not self._is_stopping:
            self._wake_thread()
            await asyncio.sleep(AWAY_BACKOFF_S / 4)

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        if self._main is not None and not self._is_stopping:
            self._main.call_later(BEAT_S, self._beat)

    def _wake_thread(self) -> None:
        if self._own is not None and self._wake is not None and not self._own.is_closed():
            self._own.call_soon_threadsafe(self._wake.set)

    def _run(self) -> None:
        asyncio.run(self._renew_forever())

    async def _renew_forever(self) -> None:
        self._own = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        redis = redis_client.connect(self._settings)
        try:
            while not self._is_stopping:
                pause_s = self._settings.lease_s / RENEWALS_A_LEASE
                try:
                    await self._renew_all(redis)
                    self._passes += 1
                except REDIS_AWAY as exc:
                    logger.warning("leases wait for Redis: %s", exc)
                    pause_s = AWAY_BACKOFF_S
                except Exception:
                    logger.exception("leases could not be renewed; trying again")
                    pause_s = AWAY_BACKOFF_S
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause_s)
                self._wake.clear()
        finally:
            await redis_client.close(redis)

    async def _renew_all(self, redis: Redis) -> None:
        if time.monotonic() - self._beat_at > self._settings.loop_stall_max_s:
            logger.error("the event loop is stuck; its runs are left to other workers")
            return
        with self._lock:
            held = list(self._held.values())
        for at in range(0, len(held), RENEW_CONCURRENCY):
            await asyncio.gather(*(self._renew(redis, one) for one in held[at : at + RENEW_CONCURRENCY]))

    async def _renew(self, redis: Redis, held: HeldLease) -> None:
        try:
            await self._renew_one(redis, held)
        except REDIS_AWAY as exc:
            if is_passing(exc):
                raise
            # Of this run alone: the others' leases go on.
            logger.exception("run %s: its lease cannot be renewed", held.run_id)

    async def _renew_one(self, redis: Redis, held: HeldLease) -> None:
        now = time.monotonic()
        # The keys' TTL is many times a lease: it is renewed seldom.
        is_ttl_due = now - held.ttl_renewed_at > self._settings.live_ttl_s / 10
        renewed = await queue_scripts.renew(
            redis,
            held.run_id,
            token=held.token,
            attempt=held.attempt,
            lease_s=self._settings.lease_s,
            ttl_s=self._settings.live_ttl_s if is_ttl_due else 0,
            stage_ids=list(held.stage_ids),
        )
        if renewed is not None and is_ttl_due:
            held.ttl_renewed_at = now
        assert self._main is not None, "started"
        if renewed is None:
            self._main.call_soon_threadsafe(held.on_lost)
        else:
            self._main.call_soon_threadsafe(held.on_renewed, renewed, now)
