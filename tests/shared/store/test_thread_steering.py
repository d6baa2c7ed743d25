"""Steering with a real server: a waiting run's message joins the active run exactly once, or the run gets its turn."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.log import live_batch, log_reader
from stagebus.shared.storage import keys
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.store import run_deletion, run_store, thread_steering
from stagebus.shared.thread_errors import RunMerged
from tests.support.threads_by_hand import INTERRUPT, KEY, STEER, ThreadByHand

OWNER = RunOwner("t")


class Steering:
    """A thread whose active run a worker holds, with one run that waits to join it."""

    def __init__(self, thread: ThreadByHand, active: str, joining: str, claim: Claim) -> None:
        self.thread, self.active, self.joining, self.claim = thread, active, joining, claim

    async def join(self, last_id: EventId | None = None) -> object:
        run = await self.thread.run(self.active)
        (found,) = await thread_steering.read_steering(self.thread.redis, run) or [self.known]
        self.known = found
        return await thread_steering.join_run(
            self.thread.redis, self.thread.settings, run, found, attempt=self.claim.attempt,
            last_id=last_id or self.claim.last_id, before_stage="extraction",
        )  # fmt: skip


@pytest.fixture
async def steering(redis: Redis, settings: Settings) -> AsyncIterator[Steering]:
    thread = ThreadByHand(redis, settings)
    active = await thread.post("the task")
    claim = await thread.work(active)
    joining = await thread.post("and hurry", on_active=STEER)
    yield Steering(thread, active, joining, claim)
    if await redis.exists(KEY):
        await thread.end_all()


async def events_of(redis: Redis, run_id: str) -> list[tuple[str, dict[str, object]]]:
    stored = await log_reader.read_stage(redis, run_id, RUN_STAGE)
    return [(event.event.decode(), orjson.loads(event.data)) for event in stored]


async def test_message_joins_the_log_and_its_run_ends(steering: Steering) -> None:
    thread, redis = steering.thread, steering.thread.redis
    before = await thread.read()
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.live(steering.joining))
        await pubsub.get_message(timeout=5)
        joined = await steering.join()
        message = await pubsub.get_message(timeout=5)
    after = await thread.read(with_messages=True)
    *_, (name, added) = await events_of(redis, steering.active)
    *_, (end_name, end) = await events_of(redis, steering.joining)
    run = await thread.run(steering.joining)

    assert joined is not None
    assert (name, added["run_id"], added["before"]) == ("message_added", steering.joining, "extraction")
    assert added["messages"] == [{"role": "user", "content": "and hurry"}]
    event_id = f"{steering.claim.attempt}-2"
    assert (end_name, end["merged_into"]) == ("done", {"run_id": steering.active, "event_id": event_id})
    assert (run.status, run.merged_into) == (RunStatus.SUCCEEDED, steering.active)
    assert (after.waiting, after.merged) == ((), {steering.joining: steering.active})
    assert [turn.run_id for turn in after.turns] == [steering.active]
    assert after.size < before.size, "its message moves on with the active run's log"
    assert message is not None
    batch = live_batch.decode(message["data"])
    assert (batch.before, batch.last, batch.is_end) == (EventId(0, 1), run.last_id, True)
    assert batch.events()[0][0] == str(run.last_id).encode()
    assert await redis.zscore(keys.QUEUE, steering.joining) is None
    assert await redis.zscore(keys.ACTIVE, steering.joining) is None


async def test_repeated_step_says_the_message_once(steering: Steering) -> None:
    """The reply was lost: the event is recognised by its place."""
    first = await steering.join()
    again = await steering.join()

    assert first is not None
    assert again is not None
    assert [name for name, _ in await events_of(steering.thread.redis, steering.active)].count("message_added") == 1


async def test_fenced_attempt_takes_no_message(steering: Steering) -> None:
    thread = steering.thread
    await thread.redis.delete(keys.lease(steering.active))
    await thread.redis.zadd(keys.QUEUE, {steering.active: 1})
    await thread.work(steering.active, "other")

    with pytest.raises(Fenced):
        await steering.join()
    assert [run.run_id for run in (await thread.read()).waiting] == [steering.joining]


async def test_log_that_lost_its_tail_takes_no_message(steering: Steering) -> None:
    joined = await steering.join(EventId(steering.claim.attempt, 7))

    assert joined is not None
    assert joined[0].is_behind  # type: ignore[index]
    assert (await steering.thread.read()).waiting


@pytest.mark.parametrize("gone", ["cancelled", "deleted", "taken over"])
async def test_run_that_left_is_not_taken(steering: Steering, gone: str) -> None:
    """It was cancelled or deleted, or an interrupt took it over, after the worker had seen it."""
    thread, redis, settings = steering.thread, steering.thread.redis, steering.thread.settings
    (steering.known,) = await thread_steering.read_steering(redis, await thread.run(steering.active))
    if gone == "cancelled":
        await run_store.cancel_run(redis, settings, steering.joining)
    elif gone == "deleted":
        await run_deletion.delete_run(redis, settings, steering.joining, OWNER)
    else:
        await thread.post(on_active=INTERRUPT)

    assert await steering.join() is None
    assert "message_added" not in [name for name, _ in await events_of(redis, steering.active)]


async def test_ended_run_takes_no_message(steering: Steering) -> None:
    run = await steering.thread.run(steering.active)
    (found,) = await thread_steering.read_steering(steering.thread.redis, run)
    await steering.thread.end(steering.active)

    with pytest.raises(RunEnded):
        await thread_steering.join_run(
            steering.thread.redis, steering.thread.settings, run, found, attempt=steering.claim.attempt,
            last_id=steering.claim.last_id, before_stage="extraction",
        )  # fmt: skip
    assert (await steering.thread.read()).active_run_id == steering.joining


async def test_run_that_joined_another_is_deleted_with_it(steering: Steering) -> None:
    """Its message is part of the other run's log, so it cannot be deleted alone."""
    thread, redis, settings = steering.thread, steering.thread.redis, steering.thread.settings
    await steering.join()
    with pytest.raises(RunMerged) as merged:
        await run_deletion.delete_run(redis, settings, steering.joining, OWNER)
    assert merged.value.run_id == steering.active

    await run_deletion.delete_run(redis, settings, steering.active, OWNER)
    await run_deletion.delete_run(redis, settings, steering.joining, OWNER)
    assert (await thread.read(with_messages=True)).size == 0


async def test_end_and_steering_race_for_one_message(redis: Redis, settings: Settings) -> None:
    """In any order the message is said once: in the active run's log, or as a turn of its own."""
    thread = ThreadByHand(redis, settings)
    for _ in range(30):
        active = await thread.post()
        claim = await thread.work(active)
        joining = await thread.post(on_active=STEER)
        steering = Steering(thread, active, joining, claim)
        run = await thread.run(active)
        (steering.known,) = await thread_steering.read_steering(redis, run)
        joined, ended, _ = await asyncio.gather(
            steering.join(), thread.end(active), run_store.cancel_run(redis, settings, joining), return_exceptions=True
        )
        names = [name for name, _ in await events_of(redis, active)]
        was_turn = joining in {turn.run_id for turn in (await thread.read()).turns}

        assert names.count("message_added") + was_turn <= 1
        assert ended is None or isinstance(ended, AssertionError), joined
        await thread.end_all()
