"""The queue's loop over a real server: which due runs it takes, and which it leaves to others."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from shared import keys, queue, store
from shared.line import Line
from shared.settings import Settings
from tests.redis_calls import calls
from worker.queue import LeasedWorker
from worker.runner import Outcome


class Works:
    """Runs that go on until they are let go; which were begun, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._let_go = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self, run_id: str, _token: str) -> Outcome:
        self.begun.append(run_id)
        self._changed.set()
        await self._let_go.wait()
        return Outcome(is_over=True)

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.begun) < count:
                self._changed.clear()
                await self._changed.wait()

    async def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
async def work(redis: Redis, settings: Settings, works: Works) -> AsyncIterator[Callable[[int], None]]:
    """Starts a worker with so many slots."""
    line, tasks, workers = Line(redis, 5), [], []

    async def nothing() -> None:
        pass

    def start(slots: int) -> None:
        few = settings.model_copy(update={"worker_concurrency": slots})
        client = queue.job_client(redis)
        worker = LeasedWorker(client, few, line=line, run=works.run, renew_now=nothing, on_drain=works.let_go)
        workers.append(worker)
        tasks.append(asyncio.create_task(worker.main()))

    yield start
    for worker in workers:
        worker._draining.set()
    await asyncio.gather(*tasks)
    await line.aclose()


async def create(redis: Redis, settings: Settings) -> str:
    return await store.create_run(redis, settings, tenant="t", model="m", request={})


async def test_own_run_whose_lease_ran_out_keeps_no_other_from_the_last_slot(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], None]
) -> None:
    """It is the first of what is due, and stays there until its lease is renewed or another worker takes it."""
    work(2)
    stuck = await create(redis, settings)
    await works.until_begun(1)
    await redis.delete(keys.lease(stuck))
    await redis.zadd(keys.QUEUE, {stuck: keys.FIRST_TIME})
    before = await calls(redis)
    await asyncio.sleep(settings.poll_s)
    looks = (await calls(redis) - before)["evalsha"]
    other = await create(redis, settings)
    await works.until_begun(2)

    assert works.begun == [stuck, other]
    assert looks <= 6, "it looks again with each poll, not all the time"


async def test_run_that_the_bell_rang_for_is_taken_with_one_look(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], None]
) -> None:
    work(2)
    await create(redis, settings)
    await works.until_begun(1)
    async with asyncio.timeout(5):
        while not (await redis.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.005)
    before = await calls(redis)
    await create(redis, settings)
    await works.until_begun(2)
    used = await calls(redis) - before

    assert used["evalsha"] <= 3 + 1, "create, take and a look; and a poll may fall in between"
    assert used["blpop"] <= 2
