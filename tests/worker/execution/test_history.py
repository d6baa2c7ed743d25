"""Where a claim takes a run up: what is complete, what was begun, which calls have their result."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
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
from stagebus.shared.errors import LogIncomplete
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
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


def called(call_id: str) -> ToolCall:
    return ToolCall(stage_id="tools", call_id=call_id, name="f", arguments="{}")


def answered(call_id: str, content: str = "x") -> ToolResult:
    return ToolResult(stage_id="tools", call_id=call_id, name="f", content=content)


async def test_fresh_run_has_nothing_behind_it(redis: Redis, run: RunByHand) -> None:
    await run.put(RunStarted(attempt=1, worker="w"))

    assert await read_history(redis, run.run_id, await begun(redis, run)) == History(["run"], {}, {})


async def test_complete_stages_hold_their_results_and_begun_ones_their_first_event(
    redis: Redis, run: RunByHand
) -> None:
    extracted = StageCompleted(stage_id="extraction", result={"text": "x"}, usage=Usage(total_tokens=3))
    await run.put(StageStarted(stage_id="extraction", attempt=1), chunk("x"), extracted)
    first, *_ = await run.put(StageStarted(stage_id="tools", attempt=1), called("1"), answered("1"))
    await run.put(RunStarted(attempt=2, worker="w2"))

    history = await read_history(redis, run.run_id, await begun(redis, run))
    assert history == History(["run", "extraction", "tools"], {"extraction": extracted.stamped(AT)}, {"tools": first})


async def test_stage_that_was_restarted_is_known_by_its_very_first_event(redis: Redis, run: RunByHand) -> None:
    """`discard_from` counts from there, however often the stage is done again."""
    (first, *_) = await run.put(StageStarted(stage_id="extraction", attempt=1), chunk("a"))
    await run.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=first.sequence + 1), chunk("b"))

    assert (await read_history(redis, run.run_id, await begun(redis, run))).begun == {"extraction": first}


async def test_stages_of_later_rounds_are_stages_of_their_own(redis: Redis, run: RunByHand) -> None:
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
    assert history.stage_ids == ["run", "extraction", "tools", "extraction.2"]


async def test_log_that_lacks_a_stage_which_was_begun_is_incomplete(redis: Redis) -> None:
    for stage_ids in (["run", "extraction"], []):
        with pytest.raises(LogIncomplete):
            await read_history(redis, ids.new_run_id(), stage_ids)


async def test_checkpoints_are_the_calls_and_results_in_the_log(redis: Redis, run: RunByHand) -> None:
    await run.put(StageStarted(stage_id="tools", attempt=1), called("1"), called("2"), called("3"))
    await run.put(answered("3", "c"), answered("1", "a"))

    checkpoints = await read_checkpoints(redis, run.run_id, "tools")
    results = {call_id: answered(call_id, content).stamped(AT) for call_id, content in (("1", "a"), ("3", "c"))}
    assert checkpoints == Checkpoints(frozenset("123"), results)


def test_checkpoints_survive_restarts_and_need_no_call_before_a_result() -> None:
    """Results of earlier attempts stand; a stage that resumes voids nothing."""
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
