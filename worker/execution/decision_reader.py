"""Reads the decisions on a run's calls from the run's record."""

import asyncio
from functools import partial

from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis, time_reply_ms
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.store import parking
from stagebus.worker.stages.approval_gate import DecisionSnapshot


class DecisionReader:
    """The decisions of one run. Waits while Redis is down, because other calls of the stage may still run."""

    def __init__(self, redis: Redis, run_id: str, decided: asyncio.Event) -> None:
        """`decided` is set whenever a decision may have been stored."""
        self._redis = redis
        self._run_id = run_id
        self._decided = decided
        self._name = f"run {run_id}: its decisions"

    async def read(self) -> DecisionSnapshot:
        """Returns all decisions stored so far."""
        return await retry_while_redis_is_down(self._read, self._name)

    async def expire(self, call_id: str) -> Decision:
        """Denies an expired call, unless a person was faster; returns the decision that counts."""
        return await retry_while_redis_is_down(partial(self._expire, call_id), self._name)

    async def wait_for_change(self) -> None:
        """Returns when another `read` may find more."""
        await self._decided.wait()
        self._decided.clear()

    async def _read(self) -> DecisionSnapshot:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(keys.run(self._run_id), "decisions")
            pipe.time()
            seen, time = await pipe.execute()
        return DecisionSnapshot(decisions.decode_all(seen), time_reply_ms(time), seen or b"")

    async def _expire(self, call_id: str) -> Decision:
        expired = decisions.encode(decisions.EXPIRED)
        return decisions.decode(await parking.decide(self._redis, self._run_id, call_id, expired))
