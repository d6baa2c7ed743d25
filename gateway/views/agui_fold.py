"""The fold of AG-UI 1.0: a run as the events of an agent.

What a restart makes void is taken back with a `MESSAGES_SNAPSHOT`, which holds the conversation without it. The same
snapshot brings a client up to date that attaches to a run. So a fold knows the messages that the client posted.
Spec: https://docs.ag-ui.com/concepts/events
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

import orjson

from stagebus.gateway.streaming.fold import Fold, Json, RunFacts, encode_data
from stagebus.gateway.streaming.model_pieces import is_model_stage, pieces_of

PROTOCOL_VERSION: Final = "1.0"

_USAGE: Final = {"inputTokens": "prompt_tokens", "outputTokens": "completion_tokens", "totalTokens": "total_tokens"}


@dataclass
class SpokenMessage:
    """A message of the run: text, reasoning or a tool's result.

    Attributes:
        stage_id: the model stage that speaks; what it said may become void.
    """

    id: str
    role: Literal["assistant", "reasoning", "tool"]
    stage_id: str
    parts: list[str] = field(default_factory=list)
    fields: Json = field(default_factory=dict)

    @property
    def content(self) -> str:
        """The text so far."""
        return "".join(self.parts)

    def as_message(self) -> Json:
        """Returns the message as in a snapshot."""
        return {"id": self.id, "role": self.role, "content": self.content, **self.fields}


class AguiFold(Fold):
    """The events of a run for the clients that posted the same thread, run and messages."""

    def __init__(self, run: RunFacts, thread_id: str, run_id: str, posted: bytes) -> None:
        """`posted` is the JSON of the client's messages that are not the run's own."""
        super().__init__(run)
        self._ids: Json = {"threadId": thread_id, "runId": run_id}
        self._posted = posted
        self._at = run.created_at
        self._step: str | None = None
        self._messages: list[SpokenMessage] = []
        self._open: dict[str, SpokenMessage] = {}  # by role: more of it may come
        self._terminal = b""

    # --- a connection --------------------------------------------------------

    def opening(self, *, is_attached: bool) -> bytes:
        """Returns the events with which a connection begins, before those of the log.

        Args:
            is_attached: the connection continues a run: it gets what was said so far, and what is open is opened again.
        """
        started = self._event(
            "RUN_STARTED", **self._ids, protocolVersion=PROTOCOL_VERSION,
            metadata={"stagebus": {"runId": self.run.run_id}},
        )  # fmt: skip
        if not is_attached:
            return started
        parts = [started, self._snapshot() if self._messages else b""]
        if not self._terminal:
            parts += [self._event("STEP_STARTED", stepName=self._step)] if self._step else []
            parts += [start for message in self._open.values() for start in self._starts(message)]
        return b"".join([*parts, self._terminal])

    # --- events --------------------------------------------------------------

    def on_run_queued(self, data: Json, sequence: int) -> list[bytes]:
        """Keeps the time; the protocol has no such event."""
        self._note(data)
        return []

    # Their times count, since every event has the newest time of the log.
    on_run_started = on_retry_scheduled = on_tool_call = on_tool_summary = on_run_queued
    on_approval_required = on_approval_decided = on_input_required = on_run_queued
    on_history_composed = on_message_added = on_run_queued

    def on_stage_started(self, data: Json, sequence: int) -> list[bytes]:
        """Begins a step."""
        self._note(data)
        self._step = data["stage_id"]
        return [self._event("STEP_STARTED", stepName=self._step)]

    def on_tool_completion_chunk(self, data: Json, sequence: int) -> list[bytes]:
        """Passes text and reasoning on as they come."""
        events: list[bytes] = []
        for piece in pieces_of(data["tool_results"]):
            if piece.is_reasoning:
                events += self._say("reasoning", data["stage_id"], piece.text, sequence)
            else:
                events += self._end_open("reasoning")
                events += self._say("assistant", data["stage_id"], piece.text, sequence)
        return events

    def on_stage_restarted(self, data: Json, sequence: int) -> list[bytes]:
        """Takes back what the stage's first go has said; its step stays open."""
        self._note(data)
        stage_id = data["stage_id"]
        if not is_model_stage(stage_id):
            return []
        events = self._end_open()
        void = [message for message in self._messages if message.stage_id == stage_id]
        for message in void:
            message.parts = []
        # A snapshot without any reasoning would not remove the client's.
        self._messages = [m for m in self._messages if m not in void or m.role == "reasoning"]
        return [*events, self._snapshot()] if void else events

    def on_stage_completed(self, data: Json, sequence: int) -> list[bytes]:
        """Ends the stage's messages, corrects the text if the result has another one, and gives the calls."""
        self._note(data)
        stage_id = data["stage_id"]
        events = self._complete(stage_id, data["result"], sequence) if is_model_stage(stage_id) else []
        return [*events, *self._end_step()]

    def on_tool_result(self, data: Json, sequence: int) -> list[bytes]:
        """Gives the result of a call."""
        self._note(data)
        call_id, content = self._call_id(data["call_id"]), data["content"]
        fields = {"toolCallId": call_id} | ({"error": content} if data.get("is_error") else {})
        message = SpokenMessage(self._message_id(sequence), "tool", data["stage_id"], [content], fields=fields)
        self._messages.append(message)
        return [self._event("TOOL_CALL_RESULT", messageId=message.id, toolCallId=call_id, content=content, role="tool")]

    def on_done(self, data: Json, sequence: int) -> list[bytes]:
        """Finishes the run."""
        self._note(data)
        usage = data.get("usage") or {}
        counts = {name: usage[field] for name, field in _USAGE.items() if field in usage}
        return self._finish("success", **({"usage": [counts]} if any(counts.values()) else {}))

    def on_cancel(self, data: Json, sequence: int) -> list[bytes]:
        """Finishes the run where it was cancelled."""
        self._note(data)
        return self._finish("cancelled")

    def on_error(self, data: Json, sequence: int) -> list[bytes]:
        """Ends the run with its error."""
        self._note(data)
        events = [*self._end_open(), *self._end_step()]
        self._terminal = self._event("RUN_ERROR", message=data["error"], code=data["code"])
        return [*events, self._terminal]

    # --- parts ---------------------------------------------------------------

    _START_AND_END: ClassVar = {
        "assistant": (("TEXT_MESSAGE_START",), ("TEXT_MESSAGE_END",)),
        "reasoning": (("REASONING_START", "REASONING_MESSAGE_START"), ("REASONING_MESSAGE_END", "REASONING_END")),
    }

    def _say(self, role: Literal["assistant", "reasoning"], stage_id: str, text: str, sequence: int) -> list[bytes]:
        message = self._open.get(role)
        events: list[bytes] = []
        if message is None:
            message_id = self._message_id(sequence) + ("_reasoning" if role == "reasoning" else "")
            message = self._open[role] = SpokenMessage(message_id, role, stage_id)
            self._messages.append(message)
            events = self._starts(message)
        message.parts.append(text)
        name = "REASONING_MESSAGE_CONTENT" if role == "reasoning" else "TEXT_MESSAGE_CONTENT"
        return [*events, self._event(name, messageId=message.id, delta=text)]

    def _starts(self, message: SpokenMessage) -> list[bytes]:
        return [
            self._event(name, messageId=message.id, **({"role": message.role} if "MESSAGE" in name else {}))
            for name in self._START_AND_END[message.role][0]
        ]

    def _end_open(self, *roles: str) -> list[bytes]:
        """Ends the open messages of these roles; of all without any."""
        ended = [self._open.pop(role) for role in roles or tuple(self._open) if role in self._open]
        return [
            self._event(name, messageId=message.id)
            for message in ended
            for name in self._START_AND_END[message.role][1]
        ]

    def _complete(self, stage_id: str, result: Json, sequence: int) -> list[bytes]:
        text, calls = result.get("text") or "", result.get("tool_calls") or []
        events = self._end_open("reasoning")
        spoken = next((m for m in self._messages if m.stage_id == stage_id and m.role == "assistant"), None)
        if spoken is None and text:
            events += self._say("assistant", stage_id, text, sequence)
            spoken = self._messages[-1]
        events += self._end_open()
        if spoken is not None and spoken.content != text:
            spoken.parts = [text]
            events.append(self._snapshot())
        if calls:
            if spoken is None:
                spoken = SpokenMessage(self._message_id(sequence), "assistant", stage_id)
                self._messages.append(spoken)
            spoken.fields["toolCalls"] = [self._call(call) for call in calls]
            events += [event for call in calls for event in self._call_events(call, spoken.id)]
        return events

    def _call(self, call: Json) -> Json:
        function = {"name": call["name"], "arguments": call["arguments"]}
        return {"id": self._call_id(call["id"]), "type": "function", "function": function}

    def _call_events(self, call: Json, parent_id: str) -> list[bytes]:
        call_id = self._call_id(call["id"])
        return [
            self._event("TOOL_CALL_START", toolCallId=call_id, toolCallName=call["name"], parentMessageId=parent_id),
            self._event("TOOL_CALL_ARGS", toolCallId=call_id, delta=call["arguments"]),
            self._event("TOOL_CALL_END", toolCallId=call_id),
        ]

    def _finish(self, outcome: str, **fields: Any) -> list[bytes]:
        events = [*self._end_open(), *self._end_step()]
        self._terminal = self._event("RUN_FINISHED", **self._ids, outcome={"type": outcome}, **fields)
        return [*events, self._terminal]

    def _end_step(self) -> list[bytes]:
        step, self._step = self._step, None
        return [self._event("STEP_FINISHED", stepName=step)] if step else []

    def _snapshot(self) -> bytes:
        own = orjson.dumps([message.as_message() for message in self._messages])
        posted = self._posted[1:-1]
        joined = b"[%b%b%b]" % (posted, b"," if posted and self._messages else b"", own[1:-1])
        return self._event("MESSAGES_SNAPSHOT", messages=orjson.Fragment(joined))

    def _note(self, data: Json) -> None:
        self._at = data.get("at") or self._at

    def _event(self, name: str, **fields: Any) -> bytes:
        return encode_data({"type": name, "timestamp": self._at, **fields})

    def _message_id(self, sequence: int) -> str:
        return f"msg_{self.run.run_id}_{sequence}"

    def _call_id(self, call_id: str) -> str:
        return f"{self.run.run_id}.{call_id}"
