"""The log protocol's scripts against a real server."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.log import live_batch, log_reader, sse
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.run_scripts import AppendResult, Claim, LogEntry, TerminalState

LIFE_S = 600
DONE = TerminalState(RunStatus.SUCCEEDED, retention_s=60)


@pytest.fixture
async def run_id(redis: Redis) -> str:
    run_id = ids.new_run_id()
    await create(redis, run_id)
    return run_id


async def create(redis: Redis, run_id: str) -> run_scripts.CreateResult:
    return await run_scripts.create(
        redis,
        run_id,
        tenant="t",
        model="m",
        request=b"{}",
        event="run_queued",
        data=b'{"stage_id":"run"}',
        life_s=LIFE_S,
    )


async def claim(redis: Redis, run_id: str, worker: str = "w1") -> Claim:
    claimed = await run_scripts.claim(redis, run_id, worker)
    assert claimed is not None
    return claimed


def entries(*names: str, stage_id: str = "extraction") -> list[LogEntry]:
    return [LogEntry(stage_id, name, b'{"stage_id":"%b"}' % stage_id.encode()) for name in names]


async def append(
    redis: Redis, run_id: str, attempt: int, before: EventId, batch: list[LogEntry], end: TerminalState | None = None
) -> AppendResult:
    last = EventId(attempt, before.sequence + len(batch))
    frames = [
        sse.encode(b"%d-%d" % (attempt, before.sequence + i), entry.event.encode(), entry.data)
        for i, entry in enumerate(batch, 1)
    ]
    message = live_batch.encode(before, last, [entry.stage_id for entry in batch], frames, is_end=end is not None)
    return await run_scripts.append(
        redis, run_id, attempt=attempt, before=before, entries=batch, message=message, end=end,
        stage_ids=(await log_reader.read_head(redis, run_id)).stage_ids if end else (),
    )  # fmt: skip


async def names(redis: Redis, run_id: str) -> list[str]:
    page = await log_reader.read_page(redis, run_id, START, 1000)
    return [event.event.decode() for event in page.events]


async def test_created_run_starts_with_its_first_event(redis: Redis) -> None:
    run_id = ids.new_run_id()

    assert (await create(redis, run_id)).is_new
    assert not (await create(redis, run_id)).is_new, "a second call changes nothing"
    assert [event.id for event in (await log_reader.read_page(redis, run_id, START, 10)).events] == [b"0-1"]


async def test_appended_events_get_consecutive_sequences_over_stages(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)
    batch = [*entries("a", "b"), *entries("c", stage_id="tools")]

    appended = await append(redis, run_id, mine.attempt, mine.last_id, batch)

    assert appended == AppendResult(EventId(mine.attempt, 4))
    page = await log_reader.read_page(redis, run_id, START, 10)
    assert [event.event_id.sequence for event in page.events] == [1, 2, 3, 4]
    assert (await log_reader.read_head(redis, run_id)).stage_ids == ["run", "extraction", "tools"]


async def test_older_attempt_is_fenced(redis: Redis, run_id: str) -> None:
    """Once a second attempt holds the run, the first can append nothing more."""
    old, new = await claim(redis, run_id), await claim(redis, run_id, "w2")

    with pytest.raises(Fenced):
        await append(redis, run_id, old.attempt, old.last_id, entries("late"))
    await append(redis, run_id, new.attempt, new.last_id, entries("ok"))
    assert await names(redis, run_id) == ["run_queued", "ok"]


async def test_attempts_are_at_least_the_age_of_the_run(redis: Redis, run_id: str) -> None:
    """A claim that was lost with the log's tail must not be repeated under the same number."""
    first = await claim(redis, run_id)
    born = int(await redis.hget(keys.run(run_id), "created_at"))
    await redis.hset(keys.run(run_id), "created_at", born - 5000)
    second = await claim(redis, run_id)
    third = await claim(redis, run_id)

    assert first.attempt < 5000 <= second.attempt < third.attempt


async def test_repeated_batch_adds_nothing_twice(redis: Redis, run_id: str) -> None:
    """The reply was lost; the producer sends again."""
    mine = await claim(redis, run_id)
    batch = entries("a", "b")
    first = await append(redis, run_id, mine.attempt, mine.last_id, batch)

    assert await append(redis, run_id, mine.attempt, mine.last_id, batch) == first
    longer = await append(redis, run_id, mine.attempt, mine.last_id, [*batch, *entries("c")])
    assert longer.last_id.sequence == 4
    assert await names(redis, run_id) == ["run_queued", "a", "b", "c"]


async def test_append_to_a_log_without_its_tail_is_behind(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)
    await append(redis, run_id, mine.attempt, mine.last_id, entries("a"))

    behind = await append(redis, run_id, mine.attempt, EventId(mine.attempt, 7), entries("z"))

    assert behind == AppendResult(EventId(mine.attempt, 2), is_behind=True)
    assert await names(redis, run_id) == ["run_queued", "a"]


async def test_nothing_follows_a_terminal_event(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)
    end = entries("done", stage_id="run")
    ended = await append(redis, run_id, mine.attempt, mine.last_id, end, DONE)

    assert await append(redis, run_id, mine.attempt, mine.last_id, end, DONE) == ended, "a lost reply is no second end"
    with pytest.raises(RunEnded):
        await append(redis, run_id, mine.attempt, ended.last_id, entries("late"))
    with pytest.raises(RunEnded):
        await run_scripts.claim(redis, run_id, "w2")
    with pytest.raises(RunEnded):
        await run_scripts.cancel(redis, run_id)
    assert await names(redis, run_id) == ["run_queued", "done"]


async def test_end_gives_the_log_the_retention_ttl(redis: Redis, run_id: str) -> None:
    """The record gets its TTL when the run is accounted; until then the sweep needs it."""
    mine = await claim(redis, run_id)
    appended = await append(redis, run_id, mine.attempt, mine.last_id, [*entries("a"), *entries("b", stage_id="tools")])
    await append(redis, run_id, mine.attempt, appended.last_id, entries("done", stage_id="run"), DONE)

    ttls = {key: await redis.ttl(key) async for key in redis.scan_iter("sb:run:*")}
    assert ttls.pop(keys.run(run_id).encode()) == -1
    assert len(ttls) == 4
    assert all(0 < ttl <= DONE.retention_s for ttl in ttls.values()), ttls


async def test_append_tells_of_a_cancel(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)

    assert await run_scripts.cancel(redis, run_id), "a worker holds the run"
    assert (await append(redis, run_id, mine.attempt, mine.last_id, entries("a"))).cancel


async def test_append_is_published_with_the_id_before_it(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.live(run_id))
        await pubsub.get_message(timeout=2)
        await append(redis, run_id, mine.attempt, mine.last_id, entries("a", "b"))
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=2)

    assert message is not None
    batch = live_batch.decode(message["data"])
    assert (batch.before, batch.last, batch.stages) == (EventId(0, 1), EventId(mine.attempt, 3), b"extraction:2")
    page = await log_reader.read_page(redis, run_id, EventId(0, 1), 10)
    assert batch.frames == page.frames(), "live and replayed frames are the same bytes"


async def test_claim_after_a_death_is_a_try_and_others_are_not(redis: Redis, run_id: str) -> None:
    assert (await claim(redis, run_id, "w1")).tries == 0
    assert (await claim(redis, run_id, "w1")).tries == 0, "a repeated claim of the same worker"
    assert (await claim(redis, run_id, "w2")).tries == 1, "w1 never gave the run back"
    await redis.hset(keys.run(run_id), "worker", "")
    assert (await claim(redis, run_id, "w3")).tries == 1, "w2 gave it back"


async def test_guarded_claim_leaves_a_run_that_names_a_worker_alone(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)

    assert await run_scripts.claim(redis, run_id, "", guard="worker") is None
    await append(redis, run_id, mine.attempt, mine.last_id, entries("still mine"))


async def test_guarded_claim_leaves_a_run_with_a_lease_alone(redis: Redis, run_id: str) -> None:
    mine = await claim(redis, run_id)
    await redis.set(keys.lease(run_id), "token", px=60_000)
    assert await run_scripts.claim(redis, run_id, "", guard="lease") is None
    assert (await append(redis, run_id, mine.attempt, mine.last_id, entries("still mine"))).last_id.sequence == 2
    await redis.delete(keys.lease(run_id))

    assert await run_scripts.claim(redis, run_id, "", guard="lease"), "its worker died"


@pytest.fixture
async def queued(redis: Redis, run_id: str) -> str:
    assert await queue_scripts.requeue(redis, run_id, b"{}")
    return run_id


async def test_claim_with_another_workers_lease_is_fenced(redis: Redis, queued: str) -> None:
    """A worker that slept between acquire and claim does not take the run from another one."""
    assert await queue_scripts.acquire(redis, queued, "mine", 10)
    await redis.delete(keys.lease(queued))
    await redis.zadd(keys.QUEUE, {queued: 0})
    assert await queue_scripts.acquire(redis, queued, "theirs", 10)
    with pytest.raises(Fenced):
        await run_scripts.claim(redis, queued, "w1", token="mine")

    assert await run_scripts.claim(redis, queued, "w2", token="theirs")


async def test_claim_without_its_lease_is_fenced(redis: Redis, queued: str) -> None:
    """An expired lease must be acquired again before the claim, which then changes nothing."""
    assert await queue_scripts.acquire(redis, queued, "mine", 10)
    await redis.delete(keys.lease(queued))
    record = await redis.hgetall(keys.run(queued))
    with pytest.raises(Fenced):
        await run_scripts.claim(redis, queued, "w1", token="mine")

    assert await redis.hgetall(keys.run(queued)) == record
    await redis.zadd(keys.QUEUE, {queued: 0})
    assert await queue_scripts.acquire(redis, queued, "mine", 10)
    assert await run_scripts.claim(redis, queued, "w1", token="mine")
