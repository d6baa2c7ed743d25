"""The messages of a run, read from its log as whoever ends it does."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.events import MessageAdded, StageCompleted, ToolCall, ToolResult
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest
from stagebus.shared.log import log_reader
from stagebus.shared.log.transcript import LOST, NOT_RUN, OUTCOME_UNKNOWN, Message, turn_messages
from stagebus.shared.storage import keys
from stagebus.shared.store import run_transcript
from stagebus.shared.store.run_transcript import read_turn
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand

CALLS = [ToolCallRequest(id=call_id, name="look", arguments="{}") for call_id in ("a", "b", "c")]
QUESTION = {"role": "user", "content": "And in Rome?"}
LOST_NOTE = {"role": "assistant", "content": LOST, "partial": True}


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    """A run whose tools stage is cut: one call has its result, one runs, one has not begun."""
    run = await runs_by_hand.start(redis)
    await run.begin("extraction")
    await run.say("let me look")
    result = ModelStageResult(text="let me look", tool_calls=CALLS, provider="p").model_dump(exclude_none=True)
    items = ModelItems("chat", "p", "m", [{"type": "reasoning"}])
    await run.put(StageCompleted(stage_id="extraction", result=result, items=items))
    await run.begin("tools")
    await run.put(*(ToolCall(stage_id="tools", call_id=c.id, name=c.name, arguments="{}") for c in CALLS[:2]))
    await run.put(ToolResult(stage_id="tools", call_id="a", name="look", content="found"))
    yield run
    await runs_by_hand.stop(run)


async def messages_of(run: RunByHand) -> list[Message]:
    return (await read_turn(run.redis, run.run_id, run.producer.stage_ids)).messages


@pytest.mark.parametrize("page_events", [run_transcript.PAGE_EVENTS, 2], ids=["", "many pages"])
async def test_messages_are_those_of_the_whole_log(
    run: RunByHand, monkeypatch: pytest.MonkeyPatch, page_events: int
) -> None:
    monkeypatch.setattr(run_transcript, "PAGE_EVENTS", page_events)
    await run.put(MessageAdded(run_id="S", before="synthesis", messages=[QUESTION]))
    await run.begin("synthesis")
    await run.say("It is", stage_id="synthesis")
    events = [
        e for stage_id in run.producer.stage_ids for e in await log_reader.read_stage(run.redis, run.run_id, stage_id)
    ]

    messages = await messages_of(run)
    assert messages == turn_messages(events, await log_reader.read_model_items(run.redis, run.run_id))
    assert [message["content"] for message in messages] == [
        "let me look", "found", OUTCOME_UNKNOWN, NOT_RUN, QUESTION["content"], "It is",
    ]  # fmt: skip
    assert messages[0]["origin"]["items"]["items"] == [{"type": "reasoning"}]


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_stage_that_was_lost_leaves_the_others_and_a_note(run: RunByHand, *, is_replaced: bool) -> None:
    stream = keys.stage_stream(run.run_id, "tools")
    await run.redis.delete(stream)
    if is_replaced:
        await run.redis.set(stream, "damaged", ex=runs_by_hand.TTL_S)

    calls, *results, note = await messages_of(run)
    assert [call["id"] for call in calls["tool_calls"]] == ["a", "b", "c"]
    assert [message["content"] for message in results] == [OUTCOME_UNKNOWN] * 3
    assert note == LOST_NOTE


async def test_run_whose_stages_are_unknown_leaves_a_note(run: RunByHand) -> None:
    assert (await read_turn(run.redis, run.run_id, [])).messages == [LOST_NOTE]


async def test_run_that_never_began_has_no_messages(redis: Redis) -> None:
    run = await runs_by_hand.start(redis)
    try:
        assert await messages_of(run) == []
    finally:
        await runs_by_hand.stop(run)
