"""A run's log in which everything happens that a view has to show: reasoning, text, calls, an error, a restart."""

from collections.abc import Iterable
from typing import Any

import orjson

from stagebus.gateway.streaming.fold import Fold
from stagebus.shared.domain.events import (
    CallDeferred,
    Done,
    Event,
    RunQueued,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolProgress,
    ToolResult,
)
from stagebus.shared.domain.usage import Usage
from tests.support.runs_by_hand import RunByHand, chunk

CALLS = [
    {"id": "call_0", "name": "weather", "arguments": '{"city":"Oslo"}'},
    {"id": "call_1", "name": "weather", "arguments": '{"city":"Nowhere"}'},
]
ANSWER = "The sun shines."


def thought(text: str, stage_id: str = "extraction") -> ToolCompletionChunk:
    """Builds a model chunk with reasoning."""
    return ToolCompletionChunk(
        stage_id=stage_id, tool_results={"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}
    )


# After `run_queued`, which has the sequence 1. The terminal event is not part of it.
EVENTS: tuple[Event, ...] = (
    RunStarted(attempt=1, worker="w", at=1_000),
    StageStarted(stage_id="extraction", attempt=1),
    thought("Oslo, "),
    thought("I think."),
    chunk("I look "),
    chunk("it up."),
    StageCompleted(stage_id="extraction", result={"text": "I look it up.", "tool_calls": CALLS}),
    StageStarted(stage_id="tools", attempt=1),
    ToolCall(stage_id="tools", call_id="call_0", name="weather", arguments=CALLS[0]["arguments"]),
    ToolProgress(stage_id="tools", call_id="call_0", message="half", fraction=0.5),
    ToolCall(stage_id="tools", call_id="call_1", name="weather", arguments=CALLS[1]["arguments"]),
    ToolResult(stage_id="tools", call_id="call_1", name="weather", content="no such city", is_error=True),
    ToolResult(stage_id="tools", call_id="call_0", name="weather", content='{"sun":true}'),
    StageCompleted(stage_id="tools", result={"outcomes": []}),
    StageStarted(stage_id="synthesis", attempt=1),
    thought("Void ", "synthesis"),
    chunk("It rai", "synthesis"),
    RunStarted(attempt=2, worker="x"),
    StageRestarted(stage_id="synthesis", attempt=2, discard_from=17),
    chunk("The sun", "synthesis"),
    chunk(" shines.", "synthesis"),
    StageCompleted(stage_id="synthesis", result={"text": ANSWER, "finish_reason": "stop"}),
)
RESTART = next(at for at, event in enumerate(EVENTS) if isinstance(event, StageRestarted))
DONE = Done(
    usage=Usage(
        prompt_tokens=7, completion_tokens=5, total_tokens=12, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=1
    ),
    at=9_000,
)


# A round with a call that runs here, and two identical ones of the client's tool `locate`, up to the point where the run
# waits for the client; then the rest.
_LOCATE = {"id": "call_1", "name": "locate", "arguments": '{"what":"me"}'}
CLIENT_CALLS = [CALLS[0], _LOCATE, {**_LOCATE, "id": "call_2", "arguments": '{"what": "me"}'}]
ASKING: tuple[Event, ...] = (
    RunStarted(attempt=1, worker="w", at=1_000),
    StageStarted(stage_id="extraction", attempt=1),
    chunk("Where?"),
    StageCompleted(stage_id="extraction", result={"text": "Where?", "tool_calls": CLIENT_CALLS}),
    StageStarted(stage_id="tools", attempt=1),
    ToolCall(stage_id="tools", call_id="call_0", name="weather", arguments=CALLS[0]["arguments"]),
    ToolCall(stage_id="tools", call_id="call_1", name="locate", arguments=_LOCATE["arguments"]),
    CallDeferred(
        stage_id="tools", call_id="call_1", name="locate", arguments=_LOCATE["arguments"], kind="client",
        expires_at=1 << 42, ref="1-5", at=2_000,
    ),
    ToolResult(stage_id="tools", call_id="call_0", name="weather", content='{"sun":true}', at=3_000),
)  # fmt: skip
ANSWERED: tuple[Event, ...] = (
    RunStarted(attempt=2, worker="w", at=4_000),
    ToolResult(stage_id="tools", call_id="call_1", name="locate", content="Oslo", at=4_000),
    ToolResult(stage_id="tools", call_id="call_2", name="locate", content="Oslo", same_as="call_1", at=4_000),
    StageCompleted(stage_id="tools", result={"outcomes": []}),
    StageStarted(stage_id="synthesis", attempt=2),
    chunk("The sun", "synthesis"),
    chunk(" shines.", "synthesis"),
    StageCompleted(stage_id="synthesis", result={"text": ANSWER, "finish_reason": "stop"}),
)


async def ask_client(run: RunByHand) -> None:
    """Appends the events up to the point where the run waits for its client."""
    for event in ASKING:
        await run.put(event)


async def go_on(run: RunByHand) -> None:
    """Appends the events after the client's result, up to the end."""
    for event in ANSWERED:
        await run.put(event)
    await run.end(DONE)


async def tell(run: RunByHand, start: int = 0, end: int | None = None) -> None:
    """Appends a part of the events, and the terminal event if it is the last part."""
    for event in EVENTS[start:end]:
        await run.put(event)
    if end is None:
        await run.end(DONE)


def fold_events(fold: Fold, events: Iterable[Event]) -> list[bytes]:
    """Returns the messages of a fold for a log of `run_queued` and these events."""
    log = [RunQueued(run_id=fold.run.run_id, model=fold.run.model), *events]
    return [
        message
        for sequence, event in enumerate(log, 1)
        for message in fold.add(b"1-%d" % sequence, event.event.encode(), event.data())
    ]


def frames_of(body: str) -> list[tuple[str, Any]]:
    """Returns the event and the data of each frame of a stream; comments are left out."""
    frames = []
    for block in body.split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        parts = [line.partition(":") for line in lines if line]
        fields = {name: value.removeprefix(" ") for name, _, value in parts}
        if "data" in fields:
            data = fields["data"]
            frames.append((fields.get("event", ""), data if data == "[DONE]" else orjson.loads(data)))
    return frames
