"""What a run looks like after the events that came so far; a pure fold over them.

What a `stage_restarted` voids is gone from the picture, and a `gap` takes it back to where
the log goes on, so the picture is always the log's.
"""

from dataclasses import dataclass, field
from typing import Any

from stagebus.client.event_sequencer import GAP, Received
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT, TOOLS

Json = dict[str, Any]


@dataclass
class CallState:
    """One tool call. `status` is waiting (for a person), running, completed or failed."""

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
    """One stage. `status` is running or completed."""

    stage_id: str
    status: str = "running"
    calls: dict[str, CallState] = field(default_factory=dict)
    usage: Json | None = None
    duration_ms: int | None = None
    _text: list[tuple[int, str]] = field(default_factory=list)
    _reasoning: list[tuple[int, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the model said."""
        return "".join(piece for _, piece in self._text)

    @property
    def reasoning(self) -> str:
        """What it thought, where its provider tells."""
        return "".join(piece for _, piece in self._reasoning)

    def discard(self, sequence: int) -> None:
        """What came from `sequence` on is void."""
        self._text = [piece for piece in self._text if piece[0] < sequence]
        self._reasoning = [piece for piece in self._reasoning if piece[0] < sequence]

    def say(self, sequence: int, chunk: Json) -> None:
        """One more chunk of the model's output."""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if isinstance(text := delta.get("content"), str) and text:
                self._text.append((sequence, text))
            if isinstance(text := delta.get("reasoning_content") or delta.get("reasoning"), str) and text:
                self._reasoning.append((sequence, text))


class RunState:
    """A run as its events tell it."""

    def __init__(self) -> None:
        self.status = "queued"
        self.stages: dict[str, StageState] = {}
        self.error: Json | None = None
        self.usage: Json | None = None
        self._events: list[Received] = []

    @property
    def text(self) -> str:
        """The answer so far: what the last model stage said."""
        spoken = [stage for stage in self.stages.values() if not stage.stage_id.startswith(TOOLS)]
        return spoken[-1].text if spoken else ""

    @property
    def waiting(self) -> list[CallState]:
        """The calls that wait for a person."""
        return [call for stage in self.stages.values() for call in stage.calls.values() if call.status == "waiting"]

    def add(self, received: Received) -> None:
        """Go on by one event or gap."""
        if received.event == GAP:
            earliest = int(received.data["earliest"].partition("-")[2])
            kept = [event for event in self._events if event.sequence < earliest]
            self.__init__()  # type: ignore[misc]
            for event in kept:
                self.add(event)
            return
        self._events.append(received)
        self._fold(received)

    def _fold(self, received: Received) -> None:
        data = received.data
        match received.event:
            case "run_started":
                self.status = "running"
            case "stage_started":
                self.stages[data["stage_id"]] = StageState(data["stage_id"])
            case "stage_restarted":
                self._stage(data).discard(data["discard_from"])
            case "tool_completion_chunk":
                self._stage(data).say(received.sequence, data.get("tool_results") or {})
            case "stage_completed":
                stage = self._stage(data)
                stage.status, stage.usage, stage.duration_ms = "completed", data.get("usage"), data.get("duration_ms")
            case "done" | "cancel" | "error":
                self.status = STATUS_BY_TERMINAL_EVENT[received.event].value
                self.error = data if received.event == "error" else None
                self.usage = data.get("usage")
            case _ if "call_id" in data:
                self._fold_call(received.event, data)

    def _stage(self, data: Json) -> StageState:
        """The event's stage; who follows from a cursor on may not have seen it begin."""
        return self.stages.setdefault(data["stage_id"], StageState(data["stage_id"]))

    def _fold_call(self, event: str, data: Json) -> None:
        calls = self._stage(data).calls
        call = calls.setdefault(
            data["call_id"], CallState(data["call_id"], data.get("name", ""), data.get("arguments") or "")
        )
        match event:
            case "approval_required" | "input_required":
                call.status, call.question = "waiting", data.get("question")
            case "tool_call":
                call.status, call.arguments = "running", data["arguments"]
            case "approval_decided":
                call.status = "running"
            case "tool_progress":
                call.message, call.fraction = data.get("message"), data.get("fraction")
            case "tool_result":
                call.status = "failed" if data.get("is_error") else "completed"
                call.content, call.duration_ms = data["content"], data.get("duration_ms")
        # A run parks once all that it has left to do waits for persons.
        unfinished = [call for call in calls.values() if call.status in ("running", "waiting")]
        self.status = "parked" if unfinished and all(call.status == "waiting" for call in unfinished) else "running"
