"""Builds the state of a run from its events; no I/O.

A `stage_restarted` removes the text that it discards, and a `gap` removes the events that the log
lost, so the state always matches the log.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import from_json

from stagebus.client.event_sequencer import GAP, RunEvent
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT, TOOLS
from stagebus.shared.model_text.chunk_text import chunk_text

Json = dict[str, Any]

_ENDED: Final = frozenset(STATUS_BY_TERMINAL_EVENT.values())
_FENCE: Final = re.compile(r"```\w*\s")
_BYTE_ORDER_MARK: Final = "\ufeff"


@dataclass
class CallState:
    """One tool call; `status` is waiting (for a person), deferred (waiting for a result), running, completed or failed."""

    call_id: str
    name: str
    arguments: str
    status: str = "running"
    content: str | None = None
    question: str | None = None
    message: str | None = None
    fraction: float | None = None
    duration_ms: int | None = None


@dataclass
class StageState:
    """One stage; `status` is running or completed."""

    stage_id: str
    status: str = "running"
    calls: dict[str, CallState] = field(default_factory=dict)
    usage: Json | None = None
    duration_ms: int | None = None
    finish_reason: str | None = None
    _text: list[tuple[int, str]] = field(default_factory=list)
    _reasoning: list[tuple[int, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The model's text, or its refusal."""
        return "".join(piece for _, piece in self._text)

    @property
    def reasoning(self) -> str:
        """The model's reasoning, if its provider sends it."""
        return "".join(piece for _, piece in self._reasoning)

    def discard(self, sequence: int) -> None:
        """Remove text and reasoning from `sequence` on."""
        self._text = [piece for piece in self._text if piece[0] < sequence]
        self._reasoning = [piece for piece in self._reasoning if piece[0] < sequence]

    def add_chunk(self, sequence: int, chunk: Json) -> None:
        """Add one chunk of the model's output."""
        added = chunk_text(chunk)
        if text := added.content + added.refusal:
            self._text.append((sequence, text))
        if added.reasoning:
            self._reasoning.append((sequence, added.reasoning))


class RunState:
    """The state of a run, built from its events with `apply`."""

    def __init__(self) -> None:
        self.status = "queued"
        self.stages: dict[str, StageState] = {}
        self.error: Json | None = None
        self.cancel_reason: str | None = None
        self.usage: Json | None = None
        self.added_messages: list[Json] = []  # chat completion messages that joined the run while it worked
        self._events: list[RunEvent] = []

    @property
    def text(self) -> str:
        """The answer so far: the text of the last model stage."""
        stage = self._last_model_stage()
        return "" if stage is None else stage.text

    def partial_json(self) -> Any:
        """Return the value of a JSON answer so far; None if there is none yet.

        Objects, lists and the last string are closed where the text ends. The whole value is validated when the run ends.
        """
        text = self.text.strip().removeprefix(_BYTE_ORDER_MARK).lstrip()
        fence = _FENCE.match(text)
        if fence:
            text = text[fence.end() :].rstrip("`").strip()
        try:
            return from_json(text, allow_partial="off" if self.status in _ENDED else "trailing-strings")
        except ValueError:
            return None  # not JSON, or not even a bracket yet

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, such as `stop`, `length`, `content_filter` or `refusal`."""
        stage = self._last_model_stage()
        return None if stage is None else stage.finish_reason

    def _last_model_stage(self) -> StageState | None:
        model_stages = [stage for stage in self.stages.values() if not stage.stage_id.startswith(TOOLS)]
        return model_stages[-1] if model_stages else None

    @property
    def waiting_calls(self) -> list[CallState]:
        """The calls that wait for a person."""
        return [call for stage in self.stages.values() for call in stage.calls.values() if call.status == "waiting"]

    def apply(self, received: RunEvent) -> None:
        """Update the state with one event or gap."""
        if received.event == GAP:
            earliest = int(received.data["earliest"].partition("-")[2])
            kept = [event for event in self._events if event.sequence < earliest]
            self.__init__()  # type: ignore[misc]
            for event in kept:
                self.apply(event)
            return
        self._events.append(received)
        self._apply_event(received)

    def _apply_event(self, received: RunEvent) -> None:
        data = received.data
        match received.event:
            case "run_started":
                self.status = "running"
            case "message_added":
                self.added_messages += data["messages"]
            case "stage_started":
                self.stages[data["stage_id"]] = StageState(data["stage_id"])
            case "stage_restarted":
                self._stage(data).discard(data["discard_from"])
            case "tool_completion_chunk":
                self._stage(data).add_chunk(received.sequence, data.get("tool_results") or {})
            case "stage_completed":
                stage = self._stage(data)
                stage.status, stage.usage, stage.duration_ms = "completed", data.get("usage"), data.get("duration_ms")
                stage.finish_reason = (data.get("result") or {}).get("finish_reason")
            case "done" | "cancel" | "error":
                self.status = STATUS_BY_TERMINAL_EVENT[received.event].value
                self.error = data if received.event == "error" else None
                self.cancel_reason = data.get("reason")
                self.usage = data.get("usage")
            case _ if "call_id" in data:
                self._apply_call_event(received.event, data)

    def _stage(self, data: Json) -> StageState:
        """Return the event's stage. A reader that starts at a cursor may not have seen its start."""
        return self.stages.setdefault(data["stage_id"], StageState(data["stage_id"]))

    def _apply_call_event(self, event: str, data: Json) -> None:
        calls = self._stage(data).calls
        call = calls.setdefault(
            data["call_id"], CallState(data["call_id"], data.get("name", ""), data.get("arguments") or "")
        )
        match event:
            case "approval_required" | "input_required":
                call.status, call.question = "waiting", data.get("question")
            case "tool_call":
                call.status, call.arguments = "running", data["arguments"]
            case "call_deferred":
                call.status, call.arguments = "deferred", data["arguments"]
            case "approval_decided":
                call.status = "running"
            case "tool_progress":
                call.message, call.fraction = data.get("message"), data.get("fraction")
            case "tool_result":
                call.status = "failed" if data.get("is_error") else "completed"
                call.content, call.duration_ms = data["content"], data.get("duration_ms")
        # A run parks once every unfinished call waits for a person or for a result.
        unfinished = [call for call in calls.values() if call.status in ("running", "waiting", "deferred")]
        self.status = "parked" if unfinished and all(call.status != "running" for call in unfinished) else "running"
