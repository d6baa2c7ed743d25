"""Threads whose runs a test creates, claims and ends itself."""

from typing import Any

from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Done, Event
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.threads import OnActive, Thread, ThreadIdentity, ThreadRequest
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.store import run_store, thread_store

IDENTITY = ThreadIdentity("t", "ada", "chat-7")
KEY = keys.thread(IDENTITY)
ENQUEUE, INTERRUPT, STEER = OnActive.ENQUEUE, OnActive.INTERRUPT, OnActive.STEER


class ThreadByHand:
    """One thread. The methods do what a gateway or a worker does."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings

    async def post(self, text: str = "hello", *, idempotency_key: str | None = None, **placed: Any) -> str:
        """Creates a run of the thread and returns its id."""
        thread = ThreadRequest(IDENTITY, [{"role": "user", "content": text}], **placed)
        return await run_store.create_run(
            self.redis, self.settings, tenant="t", model="m", request={}, user="ada", thread=thread,
            idempotency_key=idempotency_key,
        )  # fmt: skip

    async def read(self, *, with_messages: bool = False) -> Thread:
        """Reads the thread."""
        return await thread_store.read_thread(self.redis, IDENTITY, with_messages=with_messages)

    async def run(self, run_id: str) -> RunRecord:
        """Reads a run."""
        return await run_store.get_run(self.redis, run_id)

    async def work(self, run_id: str, worker: str = "w") -> Claim:
        """Acquires and claims a due run as a worker does."""
        assert await queue_scripts.acquire(self.redis, run_id, f"{worker} {run_id}", self.settings.lease_s)
        claim = await run_scripts.claim(self.redis, run_id, worker, token=f"{worker} {run_id}", thread_key=KEY)
        assert claim is not None
        return claim

    async def end(self, run_id: str, event: Event | None = None) -> None:
        """Ends a run whoever holds it."""
        claim = await run_scripts.claim(self.redis, run_id, "")
        assert claim is not None
        assert await run_store.end_claimed(self.redis, self.settings, run_id, claim, event or Done())

    async def end_all(self) -> None:
        """Ends the active and the waiting runs, one after the other."""
        while active := (await self.read()).active_run_id:
            await self.end(active)

    async def due(self) -> set[str]:
        """Returns the runs that exist, have not ended, and that a worker may acquire."""
        due = await queue_scripts.list_due(self.redis, 100)
        active = await self.redis.zrange(keys.ACTIVE, 0, -1)
        return {run_id for run_id in due.run_ids if run_id.encode() in active}
