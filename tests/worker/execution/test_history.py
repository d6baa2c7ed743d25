"""The progress that a new attempt reads from the log: complete stages, begun stages and results of calls."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.events import (
    Event,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolResult,
    ToolSummary,
    Usage,
)
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.errors import LogIncomplete
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage import keys
from stagebus.worker.execution.history import History, checkpoints_of, read_checkpoints, read_history
from stagebus.worker.stages.tools_stage import Checkpoints
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand, chunk

AT = 1769860800123


@pytest.fixture
async def run(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunByHand]:
    monkeypatch.setattr("stagebus.worker.execution.producer.wall_ms", lambda: AT)
    run = await runs_by_hand.start(redis)
    yield run
    await runs_by_hand.stop(run)


async def begun(redis: Redis, run: RunByHand) -> list[str]:
    return (await log_reader.read_head(redis, run.run_id)).stage_ids


async def subscribed(redis: Redis, run_id: str) -> Callable[[], Awaitable[list[dict[str, Any]]]]:
    """Subscribes to the run's live channel; returns a function that returns the messages so far."""
    pubsub = redis.pubsub()
    await pubsub.subscribe(keys.live(run_id))
    assert await pubsub.get_message(timeout=5)

    async def received() -> list[dict[str, Any]]:
        messages = []
        while (message := await pubsub.get_message(timeout=0.1)) is not None:
            messages.append(message)
        await pubsub.aclose()
        return messages

    return received


def called(call_id: str) -> ToolCall:
    return ToolCall(stage_id="tools", call_id=call_id, name="f", arguments="{}")


def answered(call_id: str, content: str = "x") -> ToolResult:
    return ToolResult(stage_id="tools", call_id=call_id, name="f", content=content)


async def test_history_of_a_new_run_is_empty(redis: Redis, run: RunByHand) -> None:
    await run.put(RunStarted(attempt=1, worker="w"))

    assert await read_history(redis, run.run_id, await begun(redis, run)) == History({}, {})


async def test_history_has_results_of_complete_and_first_ids_of_begun_stages(redis: Redis, run: RunByHand) -> None:
    extracted = StageCompleted(stage_id="extraction", result={"text": "x"}, usage=Usage(total_tokens=3))
    *_, completed = await run.put(StageStarted(stage_id="extraction", attempt=1), chunk("x"), extracted)
    first, *_ = await run.put(StageStarted(stage_id="tools", attempt=1), called("1"), answered("1"))
    await run.put(RunStarted(attempt=2, worker="w2"))

    history = await read_history(redis, run.run_id, await begun(redis, run))
    expected = History({"extraction": extracted.stamped(AT)}, {"tools": first}, {"extraction": completed})
    assert history == expected


async def test_history_of_a_restarted_stage_has_its_very_first_event(redis: Redis, run: RunByHand) -> None:
    """`discard_from` counts from there, no matter how often the stage restarts."""
    (first, *_) = await run.put(StageStarted(stage_id="extraction", attempt=1), chunk("a"))
    await run.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=first.sequence + 1), chunk("b"))

    assert (await read_history(redis, run.run_id, await begun(redis, run))).begun == {"extraction": first}


async def test_history_keeps_the_stages_of_each_round_apart(redis: Redis, run: RunByHand) -> None:
    for stage_id in ("extraction", "tools", "extraction.2"):
        await run.put(
            StageStarted(stage_id=stage_id, attempt=1), StageCompleted(stage_id=stage_id, result={"of": stage_id})
        )
    history = await read_history(redis, run.run_id, await begun(redis, run))

    assert {stage_id: done.result["of"] for stage_id, done in history.completed.items()} == {
        "extraction": "extraction",
        "tools": "tools",
        "extraction.2": "extraction.2",
    }


ITEMS = ModelItems("responses", "p", "m", [{"type": "reasoning", "encrypted_content": "secret"}])


async def test_model_items_are_read_back_and_are_in_no_event(redis: Redis, run: RunByHand) -> None:
    completed = StageCompleted(stage_id="extraction", result={"text": "x"}, items=ITEMS)
    second = completed.model_copy(update={"stage_id": "extraction.2", "items": None})
    received = await subscribed(redis, run.run_id)
    await run.put(StageStarted(stage_id="extraction", attempt=1), completed, StageStarted(stage_id="tools", attempt=1))
    await run.put(StageStarted(stage_id="extraction.2", attempt=1), second)
    history = await read_history(redis, run.run_id, await begun(redis, run))
    page = await log_reader.read_page(redis, run.run_id, START, 100)

    assert history.completed["extraction"].items == ITEMS
    assert history.completed["extraction.2"].items is None
    assert b"secret" not in page.frames()
    assert b"secret" not in b"".join([message["data"] for message in await received() if message["type"] == "message"])


@pytest.mark.parametrize("damage", ["SET", "HSET"])
async def test_damaged_model_items_count_as_none(redis: Redis, run: RunByHand, damage: str) -> None:
    key = keys.model_items(run.run_id)
    await redis.execute_command(damage, key, *([b"x"] if damage == "SET" else [b"extraction", b"{]"]))
    completed = StageCompleted(stage_id="extraction", result={"text": "x"}, items=ITEMS if damage == "SET" else None)
    await run.put(StageStarted(stage_id="extraction", attempt=1), completed)

    history = await read_history(redis, run.run_id, await begun(redis, run))
    assert history.completed["extraction"].items is None


async def test_log_without_a_stage_that_was_begun_is_incomplete(redis: Redis) -> None:
    for stage_ids in (["run", "extraction"], []):
        with pytest.raises(LogIncomplete):
            await read_history(redis, ids.new_run_id(), stage_ids)


async def test_checkpoints_are_the_calls_and_results_in_the_log(redis: Redis, run: RunByHand) -> None:
    await run.put(StageStarted(stage_id="tools", attempt=1), called("1"), called("2"), called("3"))
    await run.put(answered("3", "c"), answered("1", "a"))

    checkpoints = await read_checkpoints(redis, run.run_id, "tools")
    results = {call_id: answered(call_id, content).stamped(AT) for call_id, content in (("1", "a"), ("3", "c"))}
    assert checkpoints == Checkpoints(frozenset("123"), results)


def test_checkpoints_survive_restarts_and_results_without_calls() -> None:
    """Results of earlier attempts stay valid; a tools stage that continues voids nothing."""
    events: list[Event] = [
        StageStarted(stage_id="tools", attempt=1),
        called("1"),
        answered("1"),
        StageRestarted(stage_id="tools", attempt=2, discard_from=5),
        called("2"),
        answered("0"),
        ToolSummary(stage_id="tools", tool_summary=[]),
    ]
    stored = [
        StoredEvent(b"1-%d" % n, "tools", event.event.encode(), event.data()) for n, event in enumerate(events, 1)
    ]

    assert stored[0].event_id == EventId(1, 1)
    assert checkpoints_of(stored) == Checkpoints(frozenset("12"), {"1": answered("1"), "0": answered("0")})
    assert checkpoints_of([]) == Checkpoints()
