"""The events of a run's log as pydantic models. Their JSON Schema is served at `GET /schema/events.json`.

An event is never renamed. New fields have defaults, and the meaning of a field never changes. Readers ignore unknown
fields: during an upgrade a newer process writes events that an older one reads. The served schema allows such fields.
Docstrings and field descriptions are shown in docs/http-api.md.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.stage_results import ToolOutcome
from stagebus.shared.domain.usage import Usage

Json = dict[str, Any]
# What a silent run waits for.
WaitingFor = Literal["worker", "storage"]
StageId = Annotated[str, Field(description="the stage whose stream contains this event", examples=["extraction"])]


class Event(BaseModel):
    """The base class of all events. `event` is the name in the stream."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_mode_override="serialization")

    event: ClassVar[str]
    is_terminal: ClassVar[bool] = False

    stage_id: StageId

    def data(self) -> bytes:
        """Returns the payload as one line of compact JSON, without the fields that are None."""
        return orjson.dumps(self.model_dump(exclude_none=True))

    def stamped(self, at: int) -> Self:  # noqa: ARG002 - events with a time override it
        """Returns the event with its time, if it has one; `at` is in Unix ms."""
        return self


class TimedEvent(Event):
    """An event with the time when it was written. The frequent events have none, to stay small."""

    at: int | None = Field(
        default=None,
        description="time of writing in Unix ms, by the writer's clock, for display; use the ids to order events, since the "
        "clocks of two machines differ; absent in logs of older versions",
    )

    def stamped(self, at: int) -> Self:
        """Returns the event with its time, if it has one; `at` is in Unix ms."""
        return self.model_copy(update={"at": at})


class RunQueued(TimedEvent):
    """The run is accepted and stored. Always the first event, with the id `0-1`."""

    event: ClassVar[str] = "run_queued"
    stage_id: StageId = RUN_STAGE
    run_id: str
    model: str = Field(description="the requested model, or `extraction=…,synthesis=…` if the stages use two")


class RunStarted(TimedEvent):
    """A worker has claimed the run. One event for each attempt."""

    event: ClassVar[str] = "run_started"
    stage_id: StageId = RUN_STAGE
    attempt: int = Field(description="number of the attempt; it only grows")
    worker: str = Field(description="name of the worker")


class HistoryComposed(TimedEvent):
    """The run continues a thread, and its history is put together: the messages of the turns before it. Once in a run.

    Every attempt of the run gets the same messages, unless a turn was deleted in between.
    """

    event: ClassVar[str] = "history_composed"
    stage_id: StageId = RUN_STAGE
    parent: str | None = Field(
        default=None, description="the run that this one continues; absent at the start of a thread"
    )
    turns: int = Field(description="number of earlier turns in the history")
    messages: int = Field(description="number of their messages")
    bytes: int = Field(description="size of their messages as JSON")
    cut_turns: int = Field(
        default=0, description="number of earlier turns that are left out: too long, deleted or no longer readable"
    )


class MessageAdded(TimedEvent):
    """The message of another run joins this one: that run was sent to steer it. The model gets it before the next stage."""

    event: ClassVar[str] = "message_added"
    stage_id: StageId = RUN_STAGE
    run_id: str = Field(description="the run that brought the message; it has ended with `merged_into`")
    before: str = Field(description="the stage before which the model gets the messages")
    messages: list[Json] = Field(description="chat completion messages")


class RetryScheduled(TimedEvent):
    """A stage failed for a temporary reason and is retried, after a backoff or immediately with a fallback model.

    A stage is also retried, immediately, if a model with `tools = "prompted"` wrote an invalid tool call.
    """

    event: ClassVar[str] = "retry_scheduled"
    stage_id: StageId = RUN_STAGE
    retry_of: str = Field(description="the stage that is retried")
    retry: int = Field(description="1 for the first retry")
    backoff_s: float = Field(description="seconds until the retry")
    reason: str = Field(description="why the stage failed")
    model: str | None = Field(default=None, description="the fallback model, if the retry uses one")
    ignored: list[str] | None = Field(
        default=None, description="parameters of the run that the fallback model does not take"
    )


class ChunkTemplate(BaseModel):
    """The fields that are equal in all chat completion chunks of a stage. `?chunks=full` puts them back into each chunk."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(description="Unix seconds")
    model: str


class StageStarted(TimedEvent):
    """A stage begins."""

    event: ClassVar[str] = "stage_started"
    attempt: int = Field(description="the attempt that runs the stage")
    chunk: ChunkTemplate | None = Field(default=None, description="the fields that the stage's chunks leave out")
    ignored: list[str] | None = Field(
        default=None, description="parameters of the run that the stage's model does not take; they are not sent"
    )


class StageRestarted(TimedEvent):
    """An unfinished stage starts again. This is the first event of the new try.

    Discard the earlier events of this stage whose sequence is `discard_from` or higher; its `stage_started` stays valid.
    The tools stage resumes from its stored results and discards nothing: `discard_from` is then this event's own
    sequence.
    """

    event: ClassVar[str] = "stage_restarted"
    attempt: int = Field(description="the attempt that runs the stage now")
    discard_from: int = Field(description="first sequence to discard")


class ToolCompletionChunk(Event):
    """One chat completion chunk of the model's output, without the fields of `ChunkTemplate`."""

    event: ClassVar[str] = "tool_completion_chunk"
    tool_results: Json = Field(description="a chat completion chunk")

    @classmethod
    def of(cls, stage_id: str, chunk: Json) -> Self:
        """Creates the event without validation. Faster than `model_construct`, since this runs for every token."""
        event = cls.__new__(cls)
        put = object.__setattr__
        put(event, "__dict__", {"stage_id": stage_id, "tool_results": chunk})
        put(event, "__pydantic_fields_set__", set())
        put(event, "__pydantic_extra__", None)
        put(event, "__pydantic_private__", None)
        return event

    def data(self) -> bytes:
        """Returns the payload. Does not use `model_dump`, which costs four times as much: this runs for every token."""
        return orjson.dumps({"stage_id": self.stage_id, "tool_results": self.tool_results})


class ApprovalRequired(TimedEvent):
    """A tool call waits for a person's approval. One event for each such call.

    Once the run has nothing else to do, it is parked: no worker holds it until a decision arrives. At `expires_at` the
    call is denied.
    """

    event: ClassVar[str] = "approval_required"
    call_id: str
    name: str = Field(description="name of the tool")
    arguments: str = Field(description="JSON text, as the model wrote it")
    expires_at: int = Field(description="Unix ms by the clock of Redis")


class InputRequired(TimedEvent):
    """The model asks a person a question with the tool `ask_user`. The run is parked as it is for an approval."""

    event: ClassVar[str] = "input_required"
    call_id: str
    question: str = Field(description="the question, as the model wrote it")
    expires_at: int = Field(description="Unix ms by the clock of Redis")


class ApprovalDecided(TimedEvent):
    """A person decided on a call that waited, or the time ran out. One event for each call; the first decision is final."""

    event: ClassVar[str] = "approval_decided"
    call_id: str
    decision: Literal["approve", "deny", "answer"]
    is_expired: bool = Field(default=False, description="nobody decided in time, so the call is denied")
    arguments: str | None = Field(
        default=None, description="JSON text that replaces the model's arguments, if they were changed"
    )
    reason: str | None = Field(default=None, description="reason of a denial; the model gets it")
    text: str | None = Field(default=None, description="the answer to the model's question")


class ToolCall(TimedEvent):
    """A tool is about to run. One event for each call, even if several attempts run it."""

    event: ClassVar[str] = "tool_call"
    call_id: str
    name: str = Field(description="name of the tool")
    arguments: str = Field(description="JSON text, as the model wrote it or as an approval changed it")


class CallDeferred(TimedEvent):
    """A call waits for a result from outside, which `POST /runs/{run_id}/calls/{call_id}/result` gives.

    Comes after `tool_call`. Once the run has nothing else to do, it is parked as for an approval. At `expires_at` the call
    gets an error as its result.
    """

    event: ClassVar[str] = "call_deferred"
    call_id: str
    name: str = Field(description="name of the tool")
    arguments: str = Field(description="JSON text, as the model wrote it or as an approval changed it")
    kind: Literal["client", "deferred"] = Field(
        description="`client`: a client runs the call; `deferred`: the tool has started something that gives the result"
    )
    expires_at: int = Field(description="Unix ms by the clock of Redis")
    ref: str = Field(
        description="id of the event that completed the model's answer with this call. Send it with a claim or a result: "
        "after a loss of data another call may have the same id"
    )
    once: bool = Field(default=False, description="only one client may ever run the call")
    token_id: str | None = Field(
        default=None, description="revokes the tool's call token: `DELETE /runs/{run_id}/ticket/{token_id}`"
    )


class ToolProgress(Event):
    """The progress of a running call, reported by the tool. Comes between the call and its result; the newest one counts."""

    event: ClassVar[str] = "tool_progress"
    call_id: str
    message: str = Field(description="text for people; the model does not get it")
    fraction: float | None = Field(
        default=None, ge=0, le=1, description="finished part of the work, from 0 to 1, if the tool knows it"
    )


class ToolResult(TimedEvent):
    """A tool call has a result. The run never executes this call again.

    Exactly one event for each call, in the order in which the calls end.
    """

    event: ClassVar[str] = "tool_result"
    call_id: str
    name: str = Field(description="name of the tool")
    content: str = Field(description="the result as the model gets it; at most the tool's max_result_bytes of UTF-8")
    is_error: bool = False
    duration_ms: int = Field(default=0, description="duration of the call, by a monotonic clock")
    same_as: str | None = Field(
        default=None,
        description="id of an earlier call of the round with the same name and arguments, which ran for both",
    )


class ToolSummary(TimedEvent):
    """All calls of a round with their results, in the order of the model's requests."""

    event: ClassVar[str] = "tool_summary"
    tool_summary: list[ToolOutcome]


class StageCompleted(TimedEvent):
    """A stage is complete and never runs again. The last event of its stream, except for a terminal event."""

    event: ClassVar[str] = "stage_completed"
    result: Json = Field(description="the input of later stages: a ModelStageResult or a ToolStageResult")
    usage: Usage | None = None
    duration_ms: int | None = Field(
        default=None,
        description="duration of the stage in the attempt that completed it, with retries and waits, by a monotonic "
        "clock; absent in logs of older versions",
    )
    # Excluded from the event and from its schema: clients get the event, and only the worker reads the items.
    items: ModelItems | None = Field(default=None, exclude=True, repr=False)

    def items_data(self) -> bytes:
        """Returns the model items as JSON, for the run's hash of them; empty if there are none."""
        return b"" if self.items is None else self.items.data()


class MergedInto(BaseModel):
    """The run that took this one's message along, and the `message_added` event in that run's log."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    event_id: str


class Done(TimedEvent):
    """The run succeeded. Terminal.

    A run that was sent to steer another one ends with `merged_into` once its message has joined that run.
    """

    event: ClassVar[str] = "done"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE
    usage: Usage = Usage()
    merged_into: MergedInto | None = Field(
        default=None, description="the run that this one's message joined; this run asked no model"
    )


class Cancel(TimedEvent):
    """The run was cancelled. Terminal."""

    event: ClassVar[str] = "cancel"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE
    reason: str | None = Field(
        default=None, description="why, in the words of the first one who asked to cancel the run"
    )
    usage: Usage | None = Field(default=None, description="tokens up to then, with those of the stage that was cut")


class Error(TimedEvent):
    """The run failed. Terminal.

    The browser's EventSource fires an `error` event of its own when the connection breaks. Only this one has `data`.
    """

    event: ClassVar[str] = "error"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE
    error: str = Field(description="the reason in words, without secrets or provider internals")
    code: str = Field(description="stable; one of the codes in docs/design.md")
    failed_stage: str | None = Field(default=None, description="the stage that failed")
    usage: Usage | None = Field(default=None, description="tokens up to then, with those of the stage that was cut")


class Gap(BaseModel):
    """The client's cursor is not in the run's log, for example because Redis lost events. A frame without an id.

    The stream continues at `earliest`. Discard the events that you have from that sequence on.
    """

    event: ClassVar[str] = "gap"
    requested: str = Field(description="the cursor that the client sent")
    earliest: str = Field(description="the first id of the log")
    latest: str = Field(description="the last id of the log")


class StreamStatus(BaseModel):
    """The run has been silent for a few seconds, and what it waits for has changed. A frame without an id.

    It is not part of the log. The next event of the run ends what it says.
    """

    event: ClassVar[str] = "status"
    waiting_for: WaitingFor | None = Field(
        description="`worker`: no worker renews its lease on the run; `storage`: Redis does not answer; null: neither"
    )


EVENTS: Final[tuple[type[Event], ...]] = (
    RunQueued, RunStarted, HistoryComposed, MessageAdded, RetryScheduled, StageStarted, StageRestarted,
    ToolCompletionChunk, ApprovalRequired, InputRequired, ApprovalDecided, ToolCall, CallDeferred, ToolProgress, ToolResult,
    ToolSummary, StageCompleted, Done, Cancel, Error,
)  # fmt: skip
EVENT_BY_NAME: Final = {event.event: event for event in EVENTS}
# Frames of a stream that are not events of the log and have no id.
UNLOGGED: Final = (Gap, StreamStatus)
TERMINAL_NAMES: Final = frozenset(event.event for event in EVENTS if event.is_terminal)


def decode(name: str, data: bytes) -> Event:
    """Decodes the payload of the event called `name`; the inverse of `Event.data`.

    Raises:
        KeyError: no event has this name.
        pydantic.ValidationError: the payload does not fit the event.
    """
    return EVENT_BY_NAME[name].model_validate_json(data)
