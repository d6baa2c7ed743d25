"""The queue loop against a real server: which due runs it acquires, and which it leaves to other workers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.store import parking, run_store
from stagebus.shared.store.parking import Seen
from stagebus.worker.execution.leased_worker import LeasedWorker
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.stages.answer_source import Parked
from tests.support.redis_calls import blocked_client_count, calls
from tests.support.waiting import until


class Works:
    """Works on runs until `let_go`; `begun` lists them in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.outcome = Outcome(Disposition.FINISH)
        self._let_go = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self, run_id: str, _token: str, _thread_key: str) -> Outcome:
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
    """Starts a worker with this number of slots."""
    connection, tasks, workers = PipelinedConnection(redis, 5), [], []

    async def nothing(_: object) -> None:
        pass

    def start(slots: int) -> LeasedWorker:
        few = settings.model_copy(update={"worker_concurrency": slots})
        worker = LeasedWorker(
            redis, few, connection=connection, run=works.run, renew_now=nothing, on_drain=works.let_go
        )
        workers.append(worker)
        tasks.append(asyncio.create_task(worker.main()))
        return worker

    yield start
    for worker in workers:
        worker.begin_drain()
    await asyncio.gather(*tasks)
    await connection.aclose()


async def create(redis: Redis, settings: Settings) -> str:
    return await run_store.create_run(redis, settings, tenant="t", model="m", request={})


async def test_held_run_with_an_expired_lease_does_not_block_the_last_slot(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker]
) -> None:
    """It is the first due run until its lease is renewed or another worker acquires it."""
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
    assert looks <= 6, "it looks once per poll, not in a busy loop"


async def test_notified_run_is_acquired_with_one_look(
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

    assert used["evalsha"] <= 3 + 1, "create, acquire and one look; a poll may come in between"
    assert used["blpop"] <= 2


def break_off(monkeypatch: pytest.MonkeyPatch, module: Any, script: str, *, carried_out: list[bool]) -> None:
    """Breaks the connection once per item: after the script ran if the item is True, before it if False."""
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
    [(queue_scripts, "release", None), (parking, "park", Parked(0, Seen()))],
    ids=["back", "parked"],
)
async def test_run_given_back_during_a_redis_outage_costs_no_try(
    redis: Redis,
    settings: Settings,
    works: Works,
    work: Callable[[int], LeasedWorker],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    script: str,
    waits: Parked | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says what happened, and not that the run was cancelled."""
    caplog.set_level(logging.INFO)
    break_off(monkeypatch, module, script, carried_out=[False, True])
    work(1)
    run_id = await create(redis, settings)
    await works.until_begun(1)
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    works.outcome = Outcome(Disposition.PARK if waits else Disposition.RELEASE, claim.attempt, waits)
    await works.let_go()
    await works.until_begun(2)
    again = await run_scripts.claim(redis, run_id, "another")

    assert again is not None
    assert again.tries == 0
    assert f"run {run_id}: {'waits for somebody outside' if waits else 'given back to the queue'}" in caplog.text
    assert "cancelled" not in caplog.text
    works.outcome = Outcome(Disposition.FINISH)


async def test_run_acquired_during_the_drain_is_released(
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
    worker.begin_drain()
    await asyncio.sleep(0)
    goes_on.set()

    async def is_due() -> bool:
        return run_id in (await queue_scripts.list_due(redis, 1)).run_ids

    await until(is_due, settings.lease_s / 2)

    assert works.begun == []
    assert not await redis.exists(keys.lease(run_id))
    assert await redis.zcard(keys.RUNNING) == 0


async def test_run_acquired_with_a_lost_reply_is_begun_by_the_same_worker(
    redis: Redis, settings: Settings, works: Works, work: Callable[[int], LeasedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, queue_scripts, "acquire", carried_out=[True])
    work(2)
    run_id = await create(redis, settings)
    token = await until(lambda: redis.get(keys.lease(run_id)))
    await works.until_begun(1)

    assert works.begun == [run_id]
    assert await redis.get(keys.lease(run_id)) == token, "it did not wait for the lease to expire"


async def test_run_that_cannot_be_acquired_does_not_block_the_last_slot(
    redis: Redis,
    settings: Settings,
    works: Works,
    work: Callable[[int], LeasedWorker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its record has the wrong type, so it stays due as long as it is in the queue."""
    spoilt, other = await create(redis, settings), await create(redis, settings)
    await redis.set(keys.run(spoilt), "no record", ex=60)
    work(1)
    await works.until_begun(1)

    assert works.begun == [other]
    assert 1 <= caplog.text.count(f"run {spoilt} cannot be acquired") <= 3


async def test_worker_ends_if_its_polling_is_cancelled_unexpectedly(
    redis: Redis, settings: Settings, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that no longer polls would hold its place and take no runs."""

    async def cancel_itself(*_: Any) -> None:
        raise asyncio.CancelledError

    async def nothing(_: object) -> None:
        pass

    monkeypatch.setattr(queue_scripts, "list_due", cancel_itself)
    connection = PipelinedConnection(redis, 5)
    worker = LeasedWorker(
        redis, settings, connection=connection, run=works.run, renew_now=nothing, on_drain=works.let_go
    )
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(worker.main()), 5)
    await connection.aclose()
