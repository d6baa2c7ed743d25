"""Waiting for a provider that takes only so many requests at once, or requests or tokens a minute, over all workers.

Of those who wait in this process only the one that came first asks Redis; the others stand behind
it here. So a long line costs one script a second and process, and one for each request that goes.
Who leaves tells the others over pub/sub; the slow poll stands behind that.

Tokens are taken when a request goes, as an estimate, and put right when its answer has told its usage.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final
from uuid import uuid4

from stagebus.shared.config.provider_schema import ProviderEntry
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import provider_slots

logger = logging.getLogger(__name__)

# A killed worker's slots come back after this.
SLOT_TTL_S: Final = 10.0
SLOT_RENEW_S: Final = SLOT_TTL_S / 3
# Who waits asks again at least this often, and counts as gone after WAITER_TTL_S.
POLL_S: Final = 1.0
WAITER_TTL_S: Final = 5.0


class TokenReservation:
    """What one request is counted as: an estimate, until its answer says what it was.

    Attributes:
        tokens: may be set; what it is at the end counts.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class _Door:
    """One provider as this process sees it."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.head = asyncio.Lock()  # asyncio's lock lets those who wait in, in the order of their coming
        self.freed = asyncio.Event()
        self.held: set[str] = set()
        # A renewal under way could bring back a slot that is given back beside it.
        self.renewal = asyncio.Lock()
        self.is_listening = False


class ProviderLimiter:
    """Holds this process's slots of every provider."""

    def __init__(self, redis: Redis, channels: Channels) -> None:
        self._redis = redis
        self._channels = channels
        self._doors: dict[str, _Door] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._giving_back: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def reserve(self, provider: str, entry: ProviderEntry, tokens: int = 0) -> AsyncIterator[TokenReservation]:
        """Hold a slot and take tokens, at once where the entry names no limits. To wait is no failure, and may be cancelled."""
        async with self._slot(provider, entry), self._tokens(provider, entry, tokens) as spending:
            yield spending

    @asynccontextmanager
    async def _tokens(self, provider: str, entry: ProviderEntry, estimate: int) -> AsyncIterator[TokenReservation]:
        spending, limit = TokenReservation(estimate), entry.tokens_per_minute_max
        if limit is None:
            yield spending
            return
        wait_s = await self._take_tokens(provider, estimate, limit)
        if wait_s > POLL_S:
            logger.info("provider %s: waits %.1f s for its tokens a minute", provider, wait_s)
        is_used = False
        try:
            await asyncio.sleep(wait_s)
            is_used = True
            yield spending
        finally:
            if rest := (spending.tokens if is_used else 0) - estimate:
                await self._for_certain(self._put_right(provider, rest, limit))

    async def _put_right(self, provider: str, tokens: int, limit: int) -> None:
        with suppress(*REDIS_AWAY):
            await provider_slots.take_tokens(self._redis, provider, tokens, limit)

    async def _for_certain(self, giving_back: Coroutine[Any, Any, None]) -> None:
        """Give something back, though whoever held it is cancelled again while Redis takes its time."""
        task = asyncio.create_task(giving_back)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)
        await asyncio.shield(task)

    async def _take_tokens(self, provider: str, tokens: int, limit: int) -> float:
        while True:
            try:
                return await provider_slots.take_tokens(self._redis, provider, tokens, limit)
            except REDIS_AWAY as exc:
                logger.debug("provider %s: Redis is away (%s); asking for tokens again", provider, exc)
                await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def _slot(self, provider: str, entry: ProviderEntry) -> AsyncIterator[None]:
        if entry.concurrency_max is None and entry.requests_per_minute_max is None:
            yield
            return
        door = self._doors.setdefault(provider, _Door(provider))
        token = uuid4().hex
        try:
            await self._enter(door, token, entry)
            door.held.add(token)
            if self._renewing is None or self._renewing.done():
                self._renewing = asyncio.create_task(self._renew())
            yield
        finally:
            door.held.discard(token)
            # Also where it is not known whether the token got in.
            await self._for_certain(self._leave(door, token))

    async def _leave(self, door: _Door, token: str) -> None:
        async with door.renewal:
            with suppress(*REDIS_AWAY):
                await provider_slots.release(self._redis, door.provider, token)
        door.freed.set()

    async def aclose(self) -> None:
        """Give back what is on its way and stop renewing; what is still held becomes void by itself."""
        await asyncio.gather(*self._giving_back)
        if self._renewing is not None:
            await cancel_and_wait(self._renewing)

    async def _enter(self, door: _Door, token: str, entry: ProviderEntry) -> None:
        came = time.monotonic()
        async with door.head:
            while True:
                door.freed.clear()
                try:
                    wait_s = await provider_slots.acquire(
                        self._redis,
                        door.provider,
                        token,
                        held_max=entry.concurrency_max,
                        minute_max=entry.requests_per_minute_max,
                        waited_s=time.monotonic() - came,
                        slot_s=SLOT_TTL_S,
                        seen_s=WAITER_TTL_S,
                    )
                except REDIS_AWAY as exc:
                    logger.debug("provider %s: Redis is away (%s); asking for a slot again", door.provider, exc)
                    wait_s = POLL_S
                if wait_s is None:
                    break
                await self._listen(door)
                # Not wait_for, which swallows a cancel that comes as it ends (Python 3.11).
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait_s, POLL_S)):
                        await door.freed.wait()
        waited_s = time.monotonic() - came
        if waited_s > POLL_S:
            logger.info("provider %s: waited %.1f s for a slot", door.provider, waited_s)

    async def _listen(self, door: _Door) -> None:
        """Hear of slots that come back; the poll does without it while pub/sub is away."""
        if not door.is_listening:
            door.is_listening = True
            logger.debug("provider %s is at its limits; waiting for a slot", door.provider)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._channels.subscribe(keys.provider_freed(door.provider), lambda _: door.freed.set())

    async def _renew(self) -> None:
        """Keep what is held, for as long as anything is."""
        while any(door.held for door in self._doors.values()):
            for door in list(self._doors.values()):
                async with door.renewal:
                    if door.held:
                        await self._stay(door)
            await asyncio.sleep(SLOT_RENEW_S)

    async def _stay(self, door: _Door) -> None:
        try:
            await provider_slots.renew(self._redis, door.provider, door.held, SLOT_TTL_S)
        except REDIS_AWAY as exc:
            logger.debug("provider %s: Redis is away (%s); its slots are renewed later", door.provider, exc)
        except Exception:
            # Nobody would renew any slot of this process until the next request takes one.
            logger.exception("provider %s: its slots could not be renewed", door.provider)
