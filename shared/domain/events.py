"""Every event that a run's log may hold, as pydantic models; their JSON Schema is served.

An event is never renamed. Fields are added with defaults; what one means never changes.
Readers ignore fields that they do not know, since while a system is upgraded a newer
process writes what an older one reads; so the served schema allows them, too.
`stage_id` is always the stage whose stream holds the event.
"""

from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.usage import Usage

Json = dict[str, Any]
StageId = Annotated[str, Field(description="the stage whose stream holds this event", examples=["extraction"])]


class Event(BaseModel):
    """One thing that happened in a run. `event` is its name on the wire."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_mode_override="serialization")

    event: ClassVar[str]
    is_terminal: ClassVar[bool] = False

    stage_id: StageId

    def data(self) -> bytes:
        """The payload as one line of compact JSON; fields without a value are left out."""
        return orjson.dumps(self.model_dump(exclude_none=True))

    def stamped(self, at: int) -> Self:  # noqa: ARG002 - those that have a time take it
        """The event as it goes into the log at `at`, Unix ms."""
        return self


class TimedEvent(Event):
    """An event that says when it was written; all do but those of which there are many, which stay small."""

    at: int | None = Field(
        default=None,
        description="Unix ms by the clock of the process that wrote it, to be shown: the order of events is that of "
        "their ids, and two machines' clocks differ. Absent in logs of older versions",
    )

    def stamped(self, at: int) -> Self:
        """The event as it goes into the log at `at`, Unix ms."""
        return self.model_copy(update={"at": at})


class ToolCallRequest(BaseModel):
    """A call that the model asks for."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="unique in the run, whatever the provider sent")
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it")
    extra_content: Json | None = Field(
        default=None,
        description="the provider's own notes on the call, which it wants back (Gemini's thought_signature)",
    )


class ToolOutcome(BaseModel):
    """What became of one call."""

    model_config = ConfigDict(frozen=True)

    call_id: str
    name: str
    arguments: str
    content: str = Field(description="what the model is told; at most the tool's max_result_bytes of UTF-8")
    is_error: bool = False


class RunQueued(TimedEvent):
    """The run exists: accepted, and never lost from here on. Always the first event, `0-1`."""

    event: ClassVar[str] = "run_queued"
    stage_id: StageId = RUN_STAGE
    run_id: str
    model: str


class RunStarted(TimedEvent):
    """A worker has claimed the run; one for each attempt that went to work."""

    event: ClassVar[str] = "run_started"
    stage_id: StageId = RUN_STAGE
    attempt: int
    worker: str


class RetryScheduled(TimedEvent):
    """A stage failed in a way that may pass; it is done again after the backoff, or by another model at once.

    So it is, at once, where a model that calls tools in words wrote a call that cannot be carried out.
    """

    event: ClassVar[str] = "retry_scheduled"
    stage_id: StageId = RUN_STAGE
    retry_of: str = Field(description="the stage that is done again")
    retry: int = Field(description="1 for the first retry")
    backoff_s: float
    reason: str
    model: str | None = Field(default=None, description="the fallback that is asked now, where it is one")


class ChunkTemplate(BaseModel):
    """What every chat completion chunk of a stage repeats; `?chunks=full` puts it back."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(description="Unix seconds")
    model: str


class StageStarted(TimedEvent):
    """A stage begins. `chunk` stands for what its stored chunks leave out."""

    event: ClassVar[str] = "stage_started"
    attempt: int
    chunk: ChunkTemplate | None = None


class StageRestarted(TimedEvent):
    """An unfinished stage is done again; the first event of its new go.

    Every event of this stage from sequence `discard_from` on that came before this one
    is void; its `stage_started` still holds. A stage that resumes from checkpoints voids
    nothing: `discard_from` is then this event's own sequence.
    """

    event: ClassVar[str] = "stage_restarted"
    attempt: int
    discard_from: int


class ToolCompletionChunk(Event):
    """One chat completion chunk of the model's output, lean: see `ChunkTemplate`."""

    event: ClassVar[str] = "tool_completion_chunk"
    tool_results: Json = Field(description="a chat completion chunk")

    @classmethod
    def of(cls, stage_id: str, chunk: Json) -> Self:
        """The event, unchecked; `model_construct` by hand, as this is every token's way."""
        event = cls.__new__(cls)
        put = object.__setattr__
        put(event, "__dict__", {"stage_id": stage_id, "tool_results": chunk})
        put(event, "__pydantic_fields_set__", set())
        put(event, "__pydantic_extra__", None)
        put(event, "__pydantic_private__", None)
        return event

    def data(self) -> bytes:
        """The payload; by hand, as this is every token's way: `model_dump` costs four times as much."""
        return orjson.dumps({"stage_id": self.stage_id, "tool_results": self.tool_results})


class ApprovalRequired(TimedEvent):
    """A call waits for a person's approval. One for each call that does.

    The run parks once nothing else is left to do: it holds no worker until a decision
    comes, or `expires_at`, when the call counts as denied.
    """

    event: ClassVar[str] = "approval_required"
    call_id: str
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it")
    expires_at: int = Field(description="Unix ms, by Redis's clock")


class InputRequired(TimedEvent):
    """The model asks a person, by the tool `ask_user`. The run parks as it does for an approval."""

    event: ClassVar[str] = "input_required"
    call_id: str
    question: str
    expires_at: int = Field(description="Unix ms, by Redis's clock")


class ApprovalDecided(TimedEvent):
    """A call that waited was decided upon. One for each; the first decision stands."""

    event: ClassVar[str] = "approval_decided"
    call_id: str
    decision: Literal["approve", "deny", "answer"]
    is_expired: bool = Field(default=False, description="nobody decided in time, which denies")
    arguments: str | None = Field(default=None, description="JSON text in the place of the model's, if it was changed")
    reason: str | None = Field(default=None, description="why it was denied, as the model is told")
    text: str | None = Field(default=None, description="the answer to the model's question")


class ToolCall(TimedEvent):
    """A tool is about to run. One for each call, whatever attempt runs it."""

    event: ClassVar[str] = "tool_call"
    call_id: str
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it or an approval changed it")


class ToolProgress(Event):
    """How far a call is, in its tool's own words. Between the call and its result; the newest one counts."""

    event: ClassVar[str] = "tool_progress"
    call_id: str
    message: str
    fraction: float | None = Field(default=None, ge=0, le=1, description="of the work, where the tool knows")


class ToolResult(TimedEvent):
    """One tool call has its result; the run never executes this call again.

    Exactly one per call, in the order in which the calls end.
    """

    event: ClassVar[str] = "tool_result"
    call_id: str
    name: str
    content: str = Field(description="what the model is told; at most the tool's max_result_bytes of UTF-8")
    is_error: bool = False
    duration_ms: int = Field(default=0, description="for how long the call ran; monotonic")
    same_as: str | None = Field(
        default=None, description="the earlier call of the round, with the same name and arguments, that ran for both"
    )


class ToolSummary(TimedEvent):
    """All calls of the round with their results, in the order in which the model asked."""

    event: ClassVar[str] = "tool_summary"
    tool_summary: list[ToolOutcome]


class StageCompleted(TimedEvent):
    """A stage is done and never done again; always its stream's last event but for a run's end."""

    event: ClassVar[str] = "stage_completed"
    result: Json = Field(description="what later stages need: see ModelStageResult and ToolStageResult")
    usage: Usage | None = None
    duration_ms: int | None = Field(
        default=None,
        description="how long the attempt that completed it was at it, retries and waits included; monotonic. "
        "Absent in logs of older versions",
    )


class ModelStageResult(BaseModel):
    """The `result` of extraction and synthesis."""

    model_config = ConfigDict(frozen=True)

    text: str = ""
    tool_calls: list[ToolCallRequest] = []
    finish_reason: str | None = None
    model: str | None = Field(default=None, description="as the provider names it")
    provider: str | None = Field(default=None, description="who answered, as the providers file names it")
    reasoning: str | None = Field(
        default=None, description="what led to the calls; kept only for a provider that wants it back"
    )
    reasoning_details: list[Json] | None = Field(
        default=None, description="the same in the provider's own blocks, for one that wants those back"
    )


class ToolStageResult(BaseModel):
    """The `result` of tools."""

    model_config = ConfigDict(frozen=True)

    outcomes: list[ToolOutcome]


class Done(TimedEvent):
    """The run succeeded. Terminal."""

    event: ClassVar[str] = "done"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE
    usage: Usage = Usage()


class Cancel(TimedEvent):
    """The run was cancelled. Terminal."""

    event: ClassVar[str] = "cancel"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE


class Error(TimedEvent):
    """The run failed; `error` says why without secrets or provider internals. Terminal.

    `error` is also the name of EventSource's own connection event: a client tells
    them apart by `data`, which only this one has.
    """

    event: ClassVar[str] = "error"
    is_terminal: ClassVar[bool] = True
    stage_id: StageId = RUN_STAGE
    error: str
    code: str = Field(description="stable: one of the codes in docs/design.md")
    failed_stage: str | None = None


class Gap(BaseModel):
    """A frame, not an event: the cursor does not stand in the run's log (trimmed or lost).

    It has no id. The stream goes on from `earliest`; the client drops what it has
    from that sequence on.
    """

    event: ClassVar[str] = "gap"
    requested: str
    earliest: str
    latest: str


EVENTS: Final[tuple[type[Event], ...]] = (
    RunQueued, RunStarted, RetryScheduled, StageStarted, StageRestarted, ToolCompletionChunk, ApprovalRequired,
    InputRequired, ApprovalDecided, ToolCall, ToolProgress, ToolResult, ToolSummary, StageCompleted, Done, Cancel, Error,
)  # fmt: skip
EVENT_BY_NAME: Final = {event.event: event for event in EVENTS}
TERMINAL_NAMES: Final = frozenset(event.event for event in EVENTS if event.is_terminal)


def decode(name: str, data: bytes) -> Event:
    """The event that `Event.data` encoded under `name`.

    Raises:
        KeyError: no event has that name.
        pydantic.ValidationError: the payload is not that event's.
    """
    return EVENT_BY_NAME[name].model_validate_json(data)


@cache
def json_schema() -> Json:
    """One JSON Schema (2020-12): `$defs` by class, and `x-events` from event name to its definition.

    Spec: https://json-schema.org/draft/2020-12
    """
    frames: tuple[type[Event | Gap], ...] = (*EVENTS, Gap)
    shown: tuple[type[BaseModel], ...] = (*frames, ModelStageResult, ToolStageResult)
    _, schema = TypeAdapter.json_schemas(
        [(model, "serialization", TypeAdapter(model)) for model in shown], ref_template="#/$defs/{model}"
    )
    definitions = schema["$defs"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "/schema/events.json",
        "title": "Stagebus events",
        "description": "The data of each server-sent event, by its name.",
        "oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in frames],
        "x-events": {model.event: {"$ref": f"#/$defs/{model.__name__}"} for model in frames},
        "$defs": definitions,
    }
