"""The result of a run of a thread, as messages: a pure function of its log, whichever process ends the run.

    assistant   with the calls of a round       ┐ each call has exactly one result: if the run ended before
    tool        a result for each call          ┘ the call's own one, a made-up one says so
    user        a message that joined the run, where the model got it
    assistant   the final text, or `"partial": true` and the text so far

An assistant's message may have `origin`: where it comes from, the reasoning before its calls, and the model's own items.
They go back to that model alone, and clients never get them; `public_messages` removes them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from stagebus.shared.domain import model_items
from stagebus.shared.domain.events import (
    ApprovalDecided,
    Event,
    MessageAdded,
    StageCompleted,
    ToolCall,
    ToolResult,
    decode,
)
from stagebus.shared.domain.runs import EXTRACTION, ROUNDS_MAX, SYNTHESIS, TOOLS, round_stage
from stagebus.shared.domain.stage_results import ModelStageResult, ToolCallRequest, ToolOutcome, ToolStageResult
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.log.stage_text import StageText

Message = dict[str, Any]

# A turn may be longer than the thread it ends in, but not without a bound: first its notes of the models go, then the
# results of its earliest calls.
TURN_MAX_BYTES: Final = 8 * 2**20
# The model items of one turn; above this, the turn keeps none.
TURN_ITEMS_MAX_BYTES: Final = 2**18

ORIGIN: Final = "origin"
_ORIGIN_KEY: Final = b'"origin"'
PARTIAL: Final = "partial"
IS_ERROR: Final = "is_error"

NOT_RUN: Final = "this call was not carried out: the run ended before it began"
OUTCOME_UNKNOWN: Final = (
    "the outcome of this call is unknown: the run ended while it ran; look at its effects before calling it again"
)
LEFT_OUT: Final = "this result is left out: the turn is too long to be kept whole"
LOST: Final = "(A part of this turn was lost.)"

_NAMES: Final = frozenset(
    event.event.encode() for event in (ApprovalDecided, MessageAdded, StageCompleted, ToolCall, ToolResult)
)


@dataclass(slots=True)
class _StageLog:
    """One stage as far as the log says."""

    completed: ModelStageResult | None = None
    outcomes: dict[str, ToolOutcome] = field(default_factory=dict)  # of a complete stage tools
    text: StageText = field(default_factory=StageText)
    arguments: dict[str, str] = field(default_factory=dict)  # of calls, as they ran or as a person changed them
    started: set[str] = field(default_factory=set)
    results: dict[str, ToolResult] = field(default_factory=dict)
    is_lost: bool = False


class Transcript:
    """Collects a run's events, in the order of each stage, and returns the messages of its result."""

    def __init__(self) -> None:
        self._stages: dict[str, _StageLog] = {}
        self._added: dict[str, list[Message]] = {}

    def add(self, stored: StoredEvent) -> None:
        """Adds an event. Events that cannot be read are left out, since the run has to end anyway."""
        stage = self._stages.setdefault(stored.stage_id, _StageLog())
        try:
            if stored.event in _NAMES:
                self._add_event(stage, decode(stored.event.decode(), stored.data))
            else:
                stage.text.add(stored)
        except (ValueError, LookupError):
            stage.is_lost = True

    def _add_event(self, stage: _StageLog, event: Event) -> None:
        match event:
            case StageCompleted() if event.stage_id.startswith(TOOLS):
                outcomes = ToolStageResult.model_validate(event.result).outcomes
                stage.outcomes = {outcome.call_id: outcome for outcome in outcomes}
            case StageCompleted():
                stage.completed = ModelStageResult.model_validate(event.result)
            case MessageAdded():
                self._added.setdefault(event.before, []).extend(event.messages)
            case ApprovalDecided(arguments=str(changed)):
                stage.arguments[event.call_id] = changed
            case ToolCall():
                stage.arguments[event.call_id] = event.arguments
                stage.started.add(event.call_id)
            case ToolResult():
                stage.results[event.call_id] = event

    def lose(self, stage_id: str) -> None:
        """Notes that the events of a stage that the run has begun are gone."""
        self._stages.setdefault(stage_id, _StageLog()).is_lost = True

    def messages(self, items: Mapping[str, bytes] | None = None) -> list[Message]:
        """Returns the messages.

        Args:
            items: the model items of the run's stages, JSON, by stage.
        """
        kept = items or {}
        if sum(map(len, kept.values())) > TURN_ITEMS_MAX_BYTES:
            kept = {}
        messages = list(self._messages(kept))
        if any(stage.is_lost for stage in self._stages.values()):
            messages.append({"role": "assistant", "content": LOST, PARTIAL: True})
        return _bounded(messages)

    def _messages(self, items: Mapping[str, bytes]) -> Iterator[Message]:
        for number in range(1, ROUNDS_MAX + 1):
            extraction = round_stage(EXTRACTION, number)
            tools = self._stages.get(round_stage(TOOLS, number), _StageLog())
            yield from self._stage_messages(extraction, tools, items)
        yield from self._stage_messages(SYNTHESIS, _StageLog(), items)

    def _stage_messages(self, stage_id: str, tools: _StageLog, items: Mapping[str, bytes]) -> Iterator[Message]:
        yield from self._added.get(stage_id, ())
        stage = self._stages.get(stage_id)
        if stage is None:
            return
        if stage.completed is None:
            if text := stage.text.answer():
                yield {"role": "assistant", "content": text, PARTIAL: True}
            return
        result = stage.completed
        origin = _origin(result, items.get(stage_id))
        if result.tool_calls:
            yield from _round_messages(result, origin, tools)
        elif result.text:
            yield {"role": "assistant", "content": result.text} | origin


def turn_messages(events: Iterable[StoredEvent], items: Mapping[str, bytes] | None = None) -> list[Message]:
    """Returns the messages of the result that the events of a run show; see `Transcript`.

    Args:
        events: the log or its beginning; events of one stage in their order.
    """
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return transcript.messages(items)


def public_messages(messages: Iterable[Message]) -> list[Message]:
    """Returns messages of a thread as clients get them: without their origin."""
    return [{name: value for name, value in message.items() if name != ORIGIN} for message in messages]


def public_json(stored: bytes) -> bytes:
    """Returns stored messages, JSON, as clients get them, as one line."""
    if _ORIGIN_KEY not in stored and b"\n" not in stored and b"\r" not in stored:
        return stored
    return orjson.dumps(public_messages(orjson.loads(stored)))


def _origin(result: ModelStageResult, items: bytes | None) -> Message:
    """Returns the field `origin`; empty if nothing has to go back to the model."""
    origin: Message = {}
    if result.reasoning is not None:
        origin["reasoning"] = result.reasoning
    if result.reasoning_details is not None:
        origin["reasoning_details"] = result.reasoning_details
    if items is not None:
        with suppress(ValueError):  # also if they nest more deeply than a thread could be written
            model_items.decode(items)
            origin["items"] = orjson.loads(items)
    # The calls of another provider lose their ids and notes, so it is told even without any.
    if (origin or result.tool_calls) and result.provider is not None:
        origin["provider"] = result.provider
    return {ORIGIN: origin} if origin else {}


def _round_messages(result: ModelStageResult, origin: Message, tools: _StageLog) -> Iterator[Message]:
    arguments = tools.arguments | {outcome.call_id: outcome.arguments for outcome in tools.outcomes.values()}
    yield result.message(arguments) | origin
    for call in result.tool_calls:
        yield _result_message(call, tools.outcomes.get(call.id) or tools.results.get(call.id), tools)


def _result_message(call: ToolCallRequest, stored: ToolOutcome | ToolResult | None, tools: _StageLog) -> Message:
    message: Message = {"role": "tool", "tool_call_id": call.id}
    if stored is None:
        is_unknown = call.id in tools.started or tools.is_lost
        return message | {"content": OUTCOME_UNKNOWN if is_unknown else NOT_RUN, IS_ERROR: True}
    return message | {"content": stored.content} | ({IS_ERROR: True} if stored.is_error else {})


def _bounded(messages: list[Message]) -> list[Message]:
    """Returns the messages, shortened if they are longer than a turn may be. The text is bounded where it is made."""
    sizes = [len(orjson.dumps(message)) for message in messages]
    excess = sum(sizes) - TURN_MAX_BYTES
    if excess <= 0:
        return messages
    shortened = [dict(message) for message in messages]
    for message, size in zip(shortened, sizes, strict=True):
        if excess <= 0:
            break
        if message["role"] == "tool":
            message["content"] = LEFT_OUT
        message.pop(ORIGIN, None)
        excess -= size - len(orjson.dumps(message))
    return shortened
