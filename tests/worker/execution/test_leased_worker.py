"""The queue's loop over a real server: which due runs it takes, and which it leaves to others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.store import parking, run_queue, run_store
from stagebus.worker.execution.leased_worker import LeasedWorker
from stagebus.worker.execution.runner import Outcome
from stagebus.worker.stages.approval_gate import Parked
from tests.support.redis_calls import blocked_client_count, calls
from tests.support.waiting import until


class Works:
    """Runs that go on until they are let go; which were begun, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.outcome = Outcome(is_over=True)
        self._let_go = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self, run_id: str, _token: str) -> Outcome:
        self.begun.append(run_id)
        self._changed.set()
        await self._let_go.wait()
        return self.outcome

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
async def work(redis: Redis, settings: Settings, works: Works) -> AsyncIterator[Callable[[int], LeasedWorker]]:
    """Starts a worker with so many slots."""
    connection, tasks, workers = PipelinedConnection(redis, 5), [], []

    async def nothing() -> None:
        pass

    def start(slots: int) -> LeasedWorker:
        few = settings.model_copy(update={"worker_concurrency": slots})
        client = run_queue.job_client(redis)
        worker = LeasedWorker(
            client, few, connection=connection, run=works.run, renew_now=nothing, on_drain=works.let_go
        )
        workers.append(worker)
        tasks.append(asyncio.create_task(worker.main()))
        return worker

    yield start
    for worker in workers:
        worker._draining.set()
    await asyncio.gather(*tasks)
    await connection.aclose()


async def create(redis: Redis, settings: Settings) -> str:
    return await run_store.create_run(redis, settings, tenant="t", model="m", request={})


async def test_own_run_whose_lease_ran_out_keeps_no_other_from_the_last_slot(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker]
) -> None:
    """It is the first of what is due, and stays there until its lease is renewed or another worker takes it."""
    work(2)
    stuck = await create(redis, settings)
    await works.until_begun(1)
    await redis.delete(keys.lease(stuck))
    await redis.zadd(keys.QUEUE, {stuck: keys.TIME_SCORE_MIN})
    before = await calls(redis)
    await asyncio.sleep(settings.poll_s)
    looks = (await calls(redis) - before)["evalsha"]
    other = await create(redis, settings)
    await works.until_begun(2)

    assert works.begun == [stuck, other]
    assert looks <= 6, "it looks again with each poll, not all the time"


async def test_run_that_the_bell_rang_for_is_taken_with_one_look(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker]
) -> None:
    work(2)
    await create(redis, settings)
    await works.until_begun(1)
    await until(lambda: blocked_client_count(redis))
    before = await calls(redis)
    await create(redis, settings)
    await works.until_begun(2)
    used = await calls(redis) - before

    assert used["evalsha"] <= 3 + 1, "create, take and a look; and a poll may fall in between"
    assert used["blpop"] <= 2


def break_off(monkeypatch: pytest.MonkeyPatch, module: Any, script: str, *, carried_out: list[bool]) -> None:
    """The connection breaks that often in this script: before it was carried out, or after."""
    really, breaks = getattr(module, script), iter(carried_out)

    async def ask(*args: Any, **named: Any) -> Any:
        is_carried_out = next(breaks, None)
        answer = None if is_carried_out is False else await really(*args, **named)
        if is_carried_out is not None:
            raise RedisConnectionError("Redis is away")
        return answer

    monkeypatch.setattr(module, script, ask)


@pytest.mark.parametrize(
    ("module", "script", "waits"),
    [(queue_scripts, "release", None), (parking, "park", Parked(0, b""))],
    ids=["back", "parked"],
)
async def test_run_that_is_let_go_while_redis_is_away_costs_no_try(
    redis: Redis,
    settings: Settings,
    works: Works,
    work: Callable[[int], LeasedWorker],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    script: str,
    waits: Parked | None,
) -> None:
    break_off(monkeypatch, module, script, carried_out=[False, True])
    work(1)
    run_id = await create(redis, settings)
    await works.until_begun(1)
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    works.outcome = Outcome(is_over=False, attempt=claim.attempt, parked=waits)
    await works.let_go()
    await works.until_begun(2)
    again = await run_scripts.claim(redis, run_id, "another")

    assert again is not None
    assert again.tries == 0
    works.outcome = Outcome(is_over=True)


async def test_run_whose_taking_was_cut_by_the_drain_waits_for_no_lease(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    really_take, taken, goes_on = queue_scripts.acquire, asyncio.Event(), asyncio.Event()

    async def take(*args: Any) -> bool:
        is_taken = await really_take(*args)
        taken.set()
        await goes_on.wait()
        return is_taken

    monkeypatch.setattr(queue_scripts, "acquire", take)
    worker = work(1)
    run_id = await create(redis, settings)
    await asyncio.wait_for(taken.wait(), 10)
    worker._draining.set()
    await asyncio.sleep(0)
    goes_on.set()

    async def is_due() -> bool:
        return run_id in (await queue_scripts.list_due(redis, 1)).run_ids

    await until(is_due, settings.lease_s / 2)

    assert works.begun == []
    assert not await redis.exists(keys.lease(run_id))
    assert await redis.zcard(keys.RUNNING) == 0


async def test_run_whose_taking_was_answered_to_nobody_is_begun_by_who_took_it(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, queue_scripts, "acquire", carried_out=[True])
    work(2)
    run_id = await create(redis, settings)
    token = await until(lambda: redis.get(keys.lease(run_id)))
    await works.until_begun(1)

    assert works.begun == [run_id]
    assert await redis.get(keys.lease(run_id)) == token, "it waited for no lease's end"


async def test_run_that_cannot_be_taken_keeps_no_other_from_the_last_slot(
    redis: Redis,
    settings: Settings,
    works: Works,
    work: Callable[[int], LeasedWorker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Something else stands in its record's place; it is due for as long as it stands in the queue."""
    spoilt, other = await create(redis, settings), await create(redis, settings)
    await redis.set(keys.run(spoilt), "no record", ex=60)
    work(1)
    await works.until_begun(1)

    assert works.begun == [other]
    assert 1 <= caplog.text.count(f"run {spoilt} cannot be taken") <= 3
