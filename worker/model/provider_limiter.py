"""Rate limiter for providers with a limit on concurrent requests, requests per minute or tokens per minute.

The limits hold over all workers, through Redis. Of the requests that wait in one process, only the first asks
Redis; the others queue behind it in memory. So a long queue costs one script call per second and process, plus
one for each request that starts. A released slot is announced over pub/sub; a slow poll covers lost messages.

Tokens are reserved as an estimate when a request starts, and corrected when its answer states the usage.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar
from uuid import uuid4

from stagebus.shared.config.provider_schema import ProviderEntry
from stagebus.shared.observability import trace
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.storage.sharded_pubsub import ShardedChannels
from stagebus.shared.store import provider_slots

T = TypeVar("T")

logger = logging.getLogger(__name__)

# The slots of a killed worker are free again after this time.
SLOT_TTL_S: Final = 10.0
SLOT_RENEW_S: Final = SLOT_TTL_S / 3
# A waiting process asks at least this often, and loses its place in the queue after WAITER_TTL_S.
POLL_S: Final = 1.0
WAITER_TTL_S: Final = 5.0


class TokenReservation:
    """The tokens that one request counts as: first an estimate, later the real number.

    Attributes:
        tokens: the request's user sets the real number. The value at the end of the request counts.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class _ProviderQueue:
    """The requests of this process to one provider, waiting and running."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.front = asyncio.Lock()  # held by the request that asks Redis; asyncio's lock is first in, first out
        self.slot_released = asyncio.Event()
        self.slot_tokens: set[str] = set()  # of the running requests
        # A release waits for a renewal in progress, which could otherwise bring the slot back.
        self.renewal = asyncio.Lock()
        self.is_subscribed = False


class ProviderLimiter:
    """Acquires and renews this process's slots of all providers."""

    def __init__(self, redis: Redis, channels: Channels | ShardedChannels) -> None:
        self._redis = redis
        self._channels = channels
        self._queues: dict[str, _ProviderQueue] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._releases: set[asyncio.Task[None]] = set()
        self._provider_by_waiting_run: dict[str, str] = {}

    def provider_awaited_by(self, run_id: str) -> str | None:
        """Returns the provider whose limits hold the run's request back, for people; None if none does."""
        return self._provider_by_waiting_run.get(run_id)

    @contextmanager
    def _waiting(self, provider: str) -> Iterator[None]:
        """Context manager: the current task's run waits for the provider."""
        run_id = trace.current().run_id
        self._provider_by_waiting_run[run_id] = provider
        try:
            yield
        finally:
            self._provider_by_waiting_run.pop(run_id, None)

    @asynccontextmanager
    async def reserve(self, provider: str, entry: ProviderEntry, tokens: int = 0) -> AsyncIterator[TokenReservation]:
        """Context manager: waits until the provider's limits allow a request, and holds its slot and tokens.

        Without limits it does not wait. Waiting has no time-out and may be cancelled.

        Args:
            tokens: the estimate for the request and its answer.
        """
        async with self._slot(provider, entry), self._tokens(provider, entry, tokens) as reservation:
            yield reservation

    async def aclose(self) -> None:
        """Completes releases in progress and stops the renewal. Slots that are still held expire."""
        await asyncio.gather(*self._releases)
        if self._renewing is not None:
            await cancel_and_wait(self._renewing)

    @asynccontextmanager
    async def _tokens(self, provider: str, entry: ProviderEntry, estimate: int) -> AsyncIterator[TokenReservation]:
        reservation, limit = TokenReservation(estimate), entry.tokens_per_minute_max
        if limit is None:
            yield reservation
            return
        wait_s = await _wait_for_redis(
            partial(provider_slots.take_tokens, self._redis, provider, estimate, limit), f"provider {provider}: tokens"
        )
        if wait_s > POLL_S:
            logger.info("provider %s: waiting %.1f s for tokens per minute", provider, wait_s)
        is_used = False
        try:
            with self._waiting(provider):
                await asyncio.sleep(wait_s)
            is_used = True
            yield reservation
        finally:
            if correction := (reservation.tokens if is_used else 0) - estimate:
                await self._complete(self._correct_tokens(provider, correction, limit))

    async def _correct_tokens(self, provider: str, tokens: int, limit: int) -> None:
        with suppress(*REDIS_AWAY):
            await provider_slots.take_tokens(self._redis, provider, tokens, limit)

    @asynccontextmanager
    async def _slot(self, provider: str, entry: ProviderEntry) -> AsyncIterator[None]:
        if entry.concurrency_max is None and entry.requests_per_minute_max is None:
            yield
            return
        queue = self._queues.setdefault(provider, _ProviderQueue(provider))
        slot_token = uuid4().hex
        try:
            with self._waiting(provider):
                await self._acquire(queue, slot_token, entry)
            queue.slot_tokens.add(slot_token)
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._renew())
            yield
        finally:
            queue.slot_tokens.discard(slot_token)
            # Also after a failed acquisition: Redis may have granted the slot although the reply was lost.
            await self._complete(self._release(queue, slot_token))

    async def _acquire(self, queue: _ProviderQueue, slot_token: str, entry: ProviderEntry) -> None:
        started_at = time.monotonic()

        async def try_acquire() -> float | None:
            return await provider_slots.acquire(
                self._redis,
                queue.provider,
                slot_token,
                held_max=entry.concurrency_max,
                minute_max=entry.requests_per_minute_max,
                waited_s=time.monotonic() - started_at,
                slot_s=SLOT_TTL_S,
                seen_s=WAITER_TTL_S,
            )

        async with queue.front:
            while True:
                queue.slot_released.clear()
                wait_s = await _wait_for_redis(try_acquire, f"provider {queue.provider}: a slot")
                if wait_s is None:
                    break
                await self._subscribe(queue)
                # Not wait_for, which swallows a cancellation that coincides with its end (Python 3.11).
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait_s, POLL_S)):
                        await queue.slot_released.wait()
        waited_s = time.monotonic() - started_at
        if waited_s > POLL_S:
            logger.info("provider %s: waited %.1f s for a slot", queue.provider, waited_s)

    async def _subscribe(self, queue: _ProviderQueue) -> None:
        """Subscribes to released slots. While pub/sub is down, the poll suffices."""
        if not queue.is_subscribed:
            queue.is_subscribed = True
            logger.debug("provider %s is at its limits; waiting for a slot", queue.provider)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._channels.subscribe(
                        keys.provider_freed(queue.provider), lambda _: queue.slot_released.set()
                    )

    async def _release(self, queue: _ProviderQueue, slot_token: str) -> None:
        async with queue.renewal:
            with suppress(*REDIS_AWAY):
                await provider_slots.release(self._redis, queue.provider, slot_token)
        queue.slot_released.set()

    async def _renew(self) -> None:
        """Renews all held slots until none is left."""
        while any(queue.slot_tokens for queue in self._queues.values()):
            for queue in list(self._queues.values()):
                async with queue.renewal:
                    if queue.slot_tokens:
                        await self._renew_slots(queue)
            await asyncio.sleep(SLOT_RENEW_S)

    async def _renew_slots(self, queue: _ProviderQueue) -> None:
        try:
            await provider_slots.renew(self._redis, queue.provider, queue.slot_tokens, SLOT_TTL_S)
        except REDIS_AWAY as exc:
            logger.debug("provider %s: Redis is down (%s); its slots are renewed later", queue.provider, exc)
        except Exception:
            # If the task ended here, no slot of this process would be renewed until the next request.
            logger.exception("provider %s: its slots could not be renewed", queue.provider)

    async def _complete(self, release: Coroutine[Any, Any, None]) -> None:
        """Runs a release to its end, even if its caller is cancelled again while Redis is slow."""
        task = asyncio.create_task(release)
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)


async def _wait_for_redis(operation: Callable[[], Awaitable[T]], name: str) -> T:
    """Repeats the operation after any error of Redis: a request that waits for its turn does not fail."""
    return await retry_while_redis_is_down(
        operation, name, backoff_s=POLL_S, backoff_max_s=POLL_S, is_retryable=lambda _: True
    )
