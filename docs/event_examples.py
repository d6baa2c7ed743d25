"""An example of each event, made by the event classes, so that it is never out of date."""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import BaseModel

from stagebus.shared.domain import events, stage_results, thread_frames
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import EXTRACTION, SYNTHESIS, TOOLS
from stagebus.shared.domain.threads import OnActive
from stagebus.shared.domain.usage import Cost, Usage
from stagebus.shared.errors import QueueTimeout
from stagebus.shared.log import sse

_RUN_ID: Final = "01J9ZK3V7Q8E5W2R4T6Y8U0P1A"
_PARENT_ID: Final = "01J9ZK0T6M3B8V1N5C7X9Z2Q4W"
_ADDED_ID: Final = "01J9ZK4D2R6H9J1K3M5P7S8T0V"
_NEXT_RUN_ID: Final = "01J9ZK5B2M4T7X9C1F3H5K7N9Q"
_ATTEMPT: Final = 5204
_BEGAN_AT: Final = 1_769_860_800_000
_EXPIRES_AT: Final = _BEGAN_AT + 86_400_000
_USAGE: Final = Usage(
    prompt_tokens=212, completion_tokens=48, total_tokens=260, cost=Cost(amount=0.000808, currency="USD")
)
_ARGUMENTS: Final = '{"city":"Paris"}'
_WEATHER: Final = '{"place":"Paris, France","temperature_c":18.5}'
_BOOKING: Final = '{"restaurant":"Chez Ann"}'
_TEMPLATE: Final = events.ChunkTemplate(id="chatcmpl-7", created=_BEGAN_AT // 1000, model="gpt-4.1")
_CALL: Final = stage_results.ToolCallRequest(id="call_1", name="get_weather", arguments=_ARGUMENTS)
_OUTCOME: Final = stage_results.ToolOutcome(
    call_id="call_1", name="get_weather", arguments=_ARGUMENTS, content=_WEATHER
)

_EXAMPLES: Final[tuple[events.Event, ...]] = (
    events.RunQueued(run_id=_RUN_ID, model="gpt-4.1"),
    events.RunStarted(attempt=_ATTEMPT, worker="host-1:4711"),
    events.HistoryComposed(parent=_PARENT_ID, turns=2, messages=6, bytes=1840),
    events.MessageAdded(run_id=_ADDED_ID, before=SYNTHESIS, messages=[{"role": "user", "content": "And in Rome?"}]),
    events.StageStarted(stage_id=EXTRACTION, attempt=_ATTEMPT, chunk=_TEMPLATE),
    events.RetryScheduled(
        retry_of=EXTRACTION, retry=1, backoff_s=0.5, reason="the provider answered 503", stage_id="run"
    ),
    events.StageRestarted(stage_id=EXTRACTION, attempt=_ATTEMPT, discard_from=4),
    events.StageCompleted(
        stage_id=EXTRACTION,
        result=stage_results.ModelStageResult(finish_reason="tool_calls", tool_calls=[_CALL]).model_dump(
            exclude_none=True
        ),
        usage=_USAGE,
        duration_ms=912,
    ),
    events.ApprovalRequired(
        stage_id=TOOLS, call_id="call_2", name="book_table", arguments=_BOOKING, expires_at=_EXPIRES_AT
    ),
    events.InputRequired(stage_id=TOOLS, call_id="call_3", question="For how many guests?", expires_at=_EXPIRES_AT),
    events.ApprovalDecided(stage_id=TOOLS, call_id="call_2", decision="deny", reason="we have a table already"),
    events.ToolCall(stage_id=TOOLS, call_id="call_1", name="get_weather", arguments=_ARGUMENTS),
    events.CallDeferred(
        stage_id=TOOLS,
        call_id="call_4",
        name="read_file",
        arguments='{"path":"notes.txt"}',
        kind="client",
        expires_at=_EXPIRES_AT,
        ref="5204-9",
    ),
    events.ToolProgress(stage_id=TOOLS, call_id="call_1", message="asking the weather service", fraction=0.5),
    events.ToolResult(stage_id=TOOLS, call_id="call_1", name="get_weather", content=_WEATHER, duration_ms=240),
    events.ToolSummary(stage_id=TOOLS, tool_summary=[_OUTCOME]),
    events.ToolCompletionChunk.of(SYNTHESIS, {"choices": [{"index": 0, "delta": {"content": "It is mild"}}]}),
    events.Done(usage=_USAGE),
    events.Cancel(reason="the question was answered elsewhere"),
    events.Error(error=str(QueueTimeout(86400)), code=QueueTimeout.code),
)
_UNLOGGED: Final = (
    events.Gap(requested="5204-3", earliest="5204-90", latest="5204-118"),
    events.StreamStatus(waiting_for="worker"),
)

_ASKED: Final = [{"role": "user", "content": "What is the weather in Paris?"}]
_THREAD_FRAMES: Final[tuple[thread_frames.ThreadFrame, ...]] = (
    thread_frames.TurnBegun(run_id=_RUN_ID, parent_run_id=None, seq=1, messages=_ASKED),
    thread_frames.TurnSnapshot(
        run_id=_RUN_ID, parent_run_id=None, seq=1, status="succeeded", messages=_ASKED,
        result=[{"role": "assistant", "content": "It is mild."}],
    ),
    thread_frames.TurnDeleted(run_id=_RUN_ID, parent_run_id=None, seq=1),
    thread_frames.WaitingChanged(
        runs=[thread_frames.WaitingInThread(run_id=_NEXT_RUN_ID, position=1, on_active=OnActive.STEER, steers=_RUN_ID)]
    ),
    thread_frames.ThreadGap(run_id=_RUN_ID, requested=f"{_RUN_ID}.{_ATTEMPT}-90"),
)  # fmt: skip


def example_frames() -> Mapping[type[BaseModel], str]:
    """Returns an example of each event as its frame in the stream, by its class."""
    unlogged = {
        type(frame): sse.encode_without_id(frame.event, frame.model_dump_json()).decode().strip() for frame in _UNLOGGED
    }
    return {**dict(_frames()), **unlogged}


def example_thread_frames() -> Mapping[type[BaseModel], str]:
    """Returns an example of each frame of a thread's stream that is no event of a run, by its class."""
    encoded = {}
    for frame in _THREAD_FRAMES:
        data = frame.model_dump_json()
        text = sse.encode_without_id(frame.event, data)
        if isinstance(frame, thread_frames.TurnSnapshot):
            text = sse.encode(f"{_RUN_ID}.{_ATTEMPT}-118".encode(), frame.event.encode(), data.encode())
        encoded[type(frame)] = text.decode().strip()
    return encoded


def _frames() -> Iterator[tuple[type[BaseModel], str]]:
    example_by_class = {type(event): event for event in _EXAMPLES}
    for sequence, event_class in enumerate(events.EVENTS, start=1):
        event = example_by_class[event_class]
        event_id = EventId(0 if sequence == 1 else _ATTEMPT, sequence)
        data = event.stamped(_BEGAN_AT + 100 * sequence).data()
        yield event_class, sse.encode(str(event_id).encode(), event.event.encode(), data).decode().strip()
