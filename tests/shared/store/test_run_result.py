"""The result of a run that has ended, whole or stopped in mid-answer."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.events import (
    Cancel,
    Error,
    Event,
    StageCompleted,
    StageRestarted,
    ToolCompletionChunk,
)
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.stage_results import ModelStageResult
from stagebus.shared.errors import RunTimeout
from stagebus.shared.storage.run_scripts import TerminalState
from stagebus.shared.store import run_result, run_store
from stagebus.shared.store.run_result import StoredResult
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    started = await runs_by_hand.start(redis)
    await started.begin("extraction")
    yield started
    await runs_by_hand.stop(started)


async def result_of(run: RunByHand) -> StoredResult | None:
    record = await run_store.get_run(run.redis, run.run_id)
    return await run_result.read_result(run.redis, record, await run_store.read_stages(run.redis, run.run_id))


async def end(run: RunByHand, event: Event, status: RunStatus, error: bytes = b"") -> None:
    run.producer.put(event, TerminalState(status, retention_s=runs_by_hand.TTL_S, error=error))
    await run.producer.flush()


async def complete(run: RunByHand, stage_id: str, text: str) -> None:
    result = ModelStageResult(text=text, finish_reason="stop").model_dump(exclude_none=True)
    await run.put(StageCompleted(stage_id=stage_id, result=result))


async def test_run_that_has_not_ended_has_no_result(run: RunByHand) -> None:
    await complete(run, "extraction", "Hello")

    assert await result_of(run) is None


async def test_result_of_a_succeeded_run_is_its_last_model_stage(run: RunByHand) -> None:
    await complete(run, "extraction", "Let me look")
    await run.begin("tools")
    await run.begin("synthesis")
    await complete(run, "synthesis", "It is mild")
    await run.end()

    assert await result_of(run) == StoredResult("It is mild", "stop")


async def test_cancelled_run_keeps_the_text_so_far(run: RunByHand) -> None:
    await run.say("Hel", "lo")
    await end(run, Cancel(), RunStatus.CANCELLED)

    assert await result_of(run) == StoredResult("Hello", "cancelled", is_partial=True)


async def test_failed_run_names_its_error_as_the_finish_reason(run: RunByHand) -> None:
    await run.say("Hel")
    await end(run, Error(error="x", code=RunTimeout.code), RunStatus.FAILED, b'{"error":"x","code":"run_timeout"}')

    assert await result_of(run) == StoredResult("Hel", "run_timeout", is_partial=True)


async def test_voided_text_is_not_in_a_partial_result(run: RunByHand) -> None:
    ids = await run.say("Never", " seen")
    await run.put(StageRestarted(stage_id="extraction", attempt=1, discard_from=ids[0].sequence))
    await run.say("Hello")
    await end(run, Cancel(), RunStatus.CANCELLED)

    assert await result_of(run) == StoredResult("Hello", "cancelled", is_partial=True)


async def test_other_requests_run_while_a_long_partial_result_is_read(run: RunByHand) -> None:
    await run.say(*["word "] * 8_000)
    await end(run, Cancel(), RunStatus.CANCELLED)
    lags: list[float] = []

    async def measure() -> None:
        while True:
            # CPU time of this thread: what another process takes of the machine does not count.
            started = time.thread_time()
            await asyncio.sleep(0)
            lags.append(time.thread_time() - started)

    measuring = asyncio.create_task(measure())
    result = await result_of(run)
    await asyncio.sleep(0)  # the last lag ends here
    measuring.cancel()

    assert result is not None
    assert result.text == "word " * 8_000
    assert max(lags) < sum(lags) / 3


async def test_reasoning_is_not_in_a_partial_result_and_a_refusal_is(run: RunByHand) -> None:
    deltas = [
        {"reasoning_content": "Hm"},
        {"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "<think>Hm</think>Well, "}]},
        {"refusal": "no"},
    ]
    chunks = [{"choices": [{"index": 0, "delta": delta}, {"index": 1, "delta": {"content": "x"}}]} for delta in deltas]
    await run.put(*(ToolCompletionChunk.of("extraction", chunk) for chunk in [*chunks, {"choices": None}, {}]))
    await end(run, Cancel(), RunStatus.CANCELLED)

    assert await result_of(run) == StoredResult("Well, no", "cancelled", is_partial=True)


async def test_run_stopped_between_model_stages_keeps_the_last_text(run: RunByHand) -> None:
    await complete(run, "extraction", "Let me look")
    await run.begin("tools")
    await end(run, Cancel(), RunStatus.CANCELLED)

    assert await result_of(run) == StoredResult("Let me look", "stop", is_partial=True)


async def test_run_that_no_model_answered_has_no_result(redis: Redis) -> None:
    started = await runs_by_hand.start(redis)
    await end(started, Cancel(), RunStatus.CANCELLED)
    await runs_by_hand.stop(started)

    assert await result_of(started) is None
