"""What persons decide on a run's calls, as the worker that holds it reads it out of the record."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing, time_reply_ms
from stagebus.shared.store import parking
from stagebus.worker.stages.approval_gate import DecisionSnapshot

logger = logging.getLogger(__name__)

AWAY_BACKOFF_S: Final = 0.5

T = TypeVar("T")


class DecisionReader:
    """One run's decisions. Waits while Redis is away: other calls of the stage may be under way."""

    def __init__(self, redis: Redis, run_id: str, decided: asyncio.Event) -> None:
        """`decided` is set whenever the run's worker hears of a decision."""
        self._redis = redis
        self._run_id = run_id
        self._decided = decided

    async def read(self) -> DecisionSnapshot:
        """All decisions by now."""
        return await self._patiently(self._look)

    async def expire(self, call_id: str) -> Decision:
        """Decide a call whose time is over; a person may have been faster."""

        async def decide() -> Decision:
            expired = decisions.encode(decisions.EXPIRED)
            return decisions.decode(await parking.decide(self._redis, self._run_id, call_id, expired))

        return await self._patiently(decide)

    async def wait_for_change(self) -> None:
        """Return when a look may show more."""
        await self._decided.wait()
        self._decided.clear()

    async def _look(self) -> DecisionSnapshot:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.run(self._run_id), "decisions")
            pipe.time()
            seen, time = await pipe.execute()
        return DecisionSnapshot(decisions.decode_all(seen), time_reply_ms(time), seen or b"")

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except REDIS_AWAY as exc:
                if not is_passing(exc):
                    raise
                logger.warning("run %s: its decisions wait for Redis: %s", self._run_id, exc)
                await asyncio.sleep(AWAY_BACKOFF_S)
