"""The producer against a real server, with the faults that it must survive."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.events import (
    MessageAdded,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCompletionChunk,
)
from stagebus.shared.errors import Fenced, TailLost
from stagebus.shared.log import log_reader
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.run_scripts import AppendResult, LogEntry
from stagebus.worker.execution.producer import Producer
from tests.support import snapshots
from tests.support.attempt_recorder import AttemptRecorder


@pytest.fixture
async def run_id(redis: Redis) -> str:
    run_id = ids.new_run_id()
    await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b'{"stage_id":"run"}', life_s=600
    )
    return run_id


@asynccontextmanager
async def producing(
    redis: Redis, run_id: str, *, pending_max_bytes: int = 1 << 20, listener: AttemptRecorder | None = None
) -> AsyncIterator[Producer]:
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    async with Producer(
        redis,
        run_id,
        claim.attempt,
        claim.last_id,
        stage_ids=["run"],
        pending_max_bytes=pending_max_bytes,
        listener=listener,
    ) as producer:
        yield producer


def chunk(text: str) -> ToolCompletionChunk:
    return ToolCompletionChunk(stage_id="extraction", tool_results={"choices": [{"delta": {"content": text}}]})


async def texts(redis: Redis, run_id: str) -> list[str]:
    page = await log_reader.read_page(redis, run_id, START, 10_000)
    sequences = [event.event_id.sequence for event in page.events]
    assert sequences == list(range(1, len(sequences) + 1)), "no gap, no duplicate, no step back"
    chunks = [e for e in page.events if e.event == b"tool_completion_chunk"]
    return [
        ToolCompletionChunk.model_validate_json(e.data).tool_results["choices"][0]["delta"]["content"] for e in chunks
    ]


async def test_producer_appends_events_in_order(redis: Redis, run_id: str) -> None:
    async with producing(redis, run_id) as producer:
        put = [producer.put(chunk(str(i))) for i in range(2000)]
        await producer.flush()

    assert await texts(redis, run_id) == [str(i) for i in range(2000)]
    assert [event_id.sequence for event_id in put] == list(range(2, 2002))


async def test_producer_sends_a_burst_in_few_appends(redis: Redis, run_id: str) -> None:
    async with producing(redis, run_id) as producer:
        before = await calls_of_evalsha(redis)
        for i in range(500):
            producer.put(chunk(str(i)))
        await producer.flush()

    assert await calls_of_evalsha(redis) - before <= 3


async def calls_of_evalsha(redis: Redis) -> int:
    return (await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)


async def test_producer_appends_nothing_twice_after_lost_replies(
    redis: Redis, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second append is executed, but its reply is lost."""
    lose = iter([True, False] * 1000)
    monkeypatch.setattr(run_scripts, "append", _losing_replies(run_scripts.append, lambda: next(lose)))

    async with producing(redis, run_id) as producer:
        for i in range(50):
            producer.put(chunk(str(i)))
            if i % 7 == 0:
                await producer.flush()
        await producer.flush()

    assert await texts(redis, run_id) == [str(i) for i in range(50)]


def _losing_replies(
    append: Callable[..., Awaitable[AppendResult]], is_lost: Callable[[], bool]
) -> Callable[..., Awaitable[AppendResult]]:
    async def losing(*args: object, **kwargs: object) -> AppendResult:
        appended = await append(*args, **kwargs)
        if is_lost():
            raise RedisConnectionError("the reply was lost")
        return appended

    return losing


async def test_producer_sends_a_lost_tail_again_with_the_same_ids(redis: Redis, run_id: str) -> None:
    async with producing(redis, run_id) as producer:
        put = [producer.put(chunk(str(i))) for i in range(6)]
        await producer.flush()
        older = await snapshots.take(redis)
        put += [producer.put(chunk(str(i))) for i in range(6, 10)]
        await producer.flush()
        await snapshots.restore(redis, older)
        put.append(producer.put(chunk("10")))
        await producer.flush()

    assert await texts(redis, run_id) == [str(i) for i in range(11)]
    page = await log_reader.read_page(redis, run_id, EventId(0, 1), 100)
    assert [event.event_id for event in page.events] == put


async def test_producer_keeps_the_time_of_events_it_sends_again(
    redis: Redis, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id stands for the same bytes forever."""
    clock = iter([1000, 2000])
    monkeypatch.setattr("stagebus.worker.execution.producer.wall_ms", lambda: next(clock))
    async with producing(redis, run_id) as producer:
        older = await snapshots.take(redis)
        producer.put(StageStarted(stage_id="tools", attempt=1))
        producer.put(StageRestarted(stage_id="tools", attempt=1, discard_from=2))
        await producer.flush()
        before = await log_reader.read_page(redis, run_id, EventId(0, 1), 100)
        await snapshots.restore(redis, older)
        producer.check_log_end(EventId(0, 1))
        await producer.flush()
        after = await log_reader.read_page(redis, run_id, EventId(0, 1), 100)

    assert [orjson.loads(event.data)["at"] for event in before.events] == [1000, 2000]
    assert after.events == before.events


async def test_producer_sends_a_lost_tail_again_after_a_lease_renewal(redis: Redis, run_id: str) -> None:
    async with producing(redis, run_id) as producer:
        first = producer.put(chunk("0"))
        await producer.flush()
        older = await snapshots.take(redis)
        for text in "123":
            producer.put(chunk(text))
        await producer.flush()
        await snapshots.restore(redis, older)
        producer.check_log_end(first)
        await producer.flush()

    assert await texts(redis, run_id) == ["0", "1", "2", "3"]


async def test_producer_fails_if_the_log_lost_a_complete_stage(redis: Redis, run_id: str) -> None:
    """Events of a complete stage are not retained, so the worker has to claim the run again."""
    recorder = AttemptRecorder()
    async with producing(redis, run_id, listener=recorder) as producer:
        producer.put(StageStarted(stage_id="extraction", attempt=1))
        await producer.flush()
        older = await snapshots.take(redis)
        producer.put(StageCompleted(stage_id="extraction", result={}))
        await producer.flush()
        await snapshots.restore(redis, older)
        producer.put(chunk("x"))
        with pytest.raises(TailLost):
            await producer.flush()
        with pytest.raises(TailLost):
            producer.put(chunk("y"))

    assert [type(failure) for failure in recorder.failures] == [TailLost]


async def test_fenced_producer_writes_nothing_and_reports_it(redis: Redis, run_id: str) -> None:
    recorder = AttemptRecorder()
    async with producing(redis, run_id, listener=recorder) as producer:
        await run_scripts.claim(redis, run_id, "w2")
        producer.put(chunk("late"))
        with pytest.raises(Fenced):
            await producer.flush()

    assert [type(failure) for failure in recorder.failures] == [Fenced]
    assert await texts(redis, run_id) == []


async def test_producer_holds_the_model_back_while_redis_is_down(
    redis: Redis, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away = True
    real = run_scripts.append

    async def append(*args: object, **kwargs: object) -> AppendResult:
        if is_away:
            raise RedisConnectionError("away")
        return await real(*args, **kwargs)

    monkeypatch.setattr(run_scripts, "append", append)
    async with producing(redis, run_id, pending_max_bytes=2000) as producer:
        for i in range(40):
            producer.put(chunk(str(i)))
        room = asyncio.create_task(producer.wait_for_room())
        done, _ = await asyncio.wait({room}, timeout=0.3)
        assert not done, "more than pending_max_bytes wait"
        is_away = False
        await asyncio.wait_for(room, 5)
        await producer.flush()

    assert await texts(redis, run_id) == [str(i) for i in range(40)]


async def test_producer_reports_a_cancel_from_an_append(redis: Redis, run_id: str) -> None:
    recorder = AttemptRecorder()
    async with producing(redis, run_id, listener=recorder) as producer:
        await run_scripts.cancel(redis, run_id)
        producer.put(chunk("x"))
        await recorder.until(lambda r: r.cancels)


async def test_producer_gives_up_an_append_that_can_never_succeed(redis: Redis, run_id: str) -> None:
    """The stream is ahead of the record. The run must not hang, whatever the cause."""
    async with producing(redis, run_id) as producer:
        first = producer.put(chunk("a"))
        await producer.flush()
        ahead = f"{first.attempt}-{first.sequence + 1}"
        await redis.xadd(keys.stage_stream(run_id, "extraction"), {"event": "x", "data": "{}"}, id=ahead)
        producer.put(chunk("b"))
        with pytest.raises(TailLost):
            await asyncio.wait_for(producer.flush(), 5)


async def append_aside(redis: Redis, run_id: str, producer: Producer) -> EventId:
    """Appends an event as another script does, between two events of the producer."""
    event = MessageAdded(run_id="S", before="synthesis", messages=[])
    before = producer.last_id
    appended = await run_scripts.append(
        redis, run_id, attempt=before.attempt, before=before, entries=[LogEntry("run", event.event, event.data())], message=b"",
    )  # fmt: skip
    return appended.last_id


async def test_producer_continues_behind_an_event_of_another_script(redis: Redis, run_id: str) -> None:
    async with producing(redis, run_id) as producer:
        producer.put(chunk("a"))
        await producer.flush()
        event_id = await append_aside(redis, run_id, producer)
        producer.continue_after(event_id)
        assert producer.last_id == event_id
        producer.put(chunk("b"))
        await producer.flush()

    assert await texts(redis, run_id) == ["a", "b"]


async def test_lost_event_of_another_script_fails_the_attempt(redis: Redis, run_id: str) -> None:
    """Sending it again would repeat half of what that script did."""
    async with producing(redis, run_id) as producer:
        producer.put(chunk("a"))
        await producer.flush()
        snapshot = await snapshots.take(redis)
        producer.continue_after(await append_aside(redis, run_id, producer))
        await snapshots.restore(redis, snapshot)
        producer.put(chunk("b"))
        with pytest.raises(TailLost):
            await producer.flush()
