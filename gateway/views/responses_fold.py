"""The fold of the Responses view: a run as one response of OpenAI's Responses API.

    event: response.output_text.delta
    data: {"type":"response.output_text.delta","sequence_number":7,"item_id":"msg_01J…_9","output_index":0,…}

Each model stage gives a reasoning item and a message, as far as the model says something, and each call an item
`mcp_call`: clients run a `function_call` themselves, and tools run here. An item's `output_index` is never used twice.
A restart closes the stage's open items without text; they are in no later object's output.
Spec: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from io import StringIO
from typing import Any, Final

import orjson

from stagebus.gateway.streaming.fold import Fold, FrameTemplate, Json, Messages, RunFacts, encode_event
from stagebus.gateway.streaming.model_pieces import Piece, is_model_stage, pieces_of
from stagebus.shared.domain.threads import ROOT

RESPONSE_PREFIX: Final = "resp_"
SERVER_LABEL: Final = "stagebus"
ASK_TOOL: Final = "ask_user"

IN_PROGRESS: Final = "in_progress"
COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"


class _OpenText:
    """A message or a reasoning item that is being written."""

    __slots__ = ("delta", "index", "is_reasoning", "item_id", "text")

    def __init__(self, index: int, item_id: str, *, is_reasoning: bool) -> None:
        self.index = index
        self.item_id = item_id
        self.is_reasoning = is_reasoning
        self.text = StringIO()
        delta = {"type": f"{self.event_prefix}.delta", "sequence_number": 0, **self.place, "delta": "", **self.logprobs}
        self.delta = FrameTemplate(encode_event(delta), "delta", "sequence_number")

    def part(self, text: str) -> Json:
        """Returns the item's only content part."""
        if self.is_reasoning:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def item(self, status: str, content: list[Json]) -> Json:
        """Returns the item."""
        if self.is_reasoning:
            return {"type": "reasoning", "id": self.item_id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": self.item_id, "role": "assistant", "content": content, "status": status}

    @property
    def event_prefix(self) -> str:
        """Returns the beginning of the types of the item's text events."""
        return "response.reasoning_text" if self.is_reasoning else "response.output_text"

    @property
    def logprobs(self) -> Json:
        """Returns the field that only events of a message have."""
        return {} if self.is_reasoning else {"logprobs": []}

    @property
    def place(self) -> Json:
        """Returns the fields by which events name the item's part."""
        return {"item_id": self.item_id, "output_index": self.index, "content_index": 0}


class ResponsesFold(Fold):
    """Folds a run into the events of a response, and into the response itself."""

    def __init__(self, run: RunFacts) -> None:
        super().__init__(run)
        self._sequence_number = 0
        self._items_added = 0
        self._done_items: dict[int, Json] = {}  # by output_index
        self._message: _OpenText | None = None
        self._reasoning: _OpenText | None = None
        self._calls: dict[str, tuple[int, Json]] = {}  # open ones: output_index and item, by call id
        self._status = "queued"
        self._is_started = False
        self._error: Json | None = None
        self._usage: Json | None = None
        self._completed_at: int | None = None

    @property
    def status(self) -> str:
        """The response's status."""
        return self._status

    def response(self) -> Json:
        """Returns the response as the log has it so far."""
        items = dict(self._done_items)
        for text in self._open_texts():
            items[text.index] = text.item(IN_PROGRESS, [text.part(text.text.getvalue())])
        items.update(self._calls.values())
        return self._response([items[index] for index in sorted(items)])

    @property
    def _previous_response_id(self) -> str | None:
        """Returns the response that the request named as the one before; see `response_threads`."""
        parent, thread_id = self.run.parent_run_id, self.run.thread_id
        if parent == ROOT:
            return thread_id if thread_id.startswith(RESPONSE_PREFIX) else None
        return RESPONSE_PREFIX + parent if parent else None

    def _response(self, output: list[Json]) -> Json:
        return {
            "id": RESPONSE_PREFIX + self.run.run_id,
            "object": "response",
            "created_at": self.run.created_at // 1000,
            "completed_at": self._completed_at,
            "status": self._status,
            "background": True,
            "error": self._error,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": self.run.metadata,
            "model": self.run.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": self._previous_response_id,
            "store": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "usage": self._usage,
        }

    # --- events of the run ---------------------------------------------------

    def on_run_queued(self, data: Json, sequence: int) -> Messages:
        """The response is created and queued."""
        return [self._lifecycle("response.created"), self._lifecycle("response.queued")]

    def on_run_started(self, data: Json, sequence: int) -> Messages:
        """The first attempt starts the response; later ones change nothing."""
        if self._is_started:
            return []
        self._is_started = True
        self._status = IN_PROGRESS
        return [self._lifecycle("response.in_progress")]

    def on_tool_completion_chunk(self, data: Json, sequence: int) -> Messages:
        """The model says something."""
        messages: Messages = []
        for piece in pieces_of(data.get("tool_results")):
            messages += self._say(piece, sequence)
        return messages

    def on_stage_completed(self, data: Json, sequence: int) -> Messages:
        """The stage's result decides on the text and has the calls."""
        result = data.get("result") or {}
        if not is_model_stage(data["stage_id"]):
            return []
        text = result.get("text") or ""
        messages = [] if self._reasoning is None else self._close(self._reasoning, COMPLETED)
        if text and self._message is None:
            messages += self._open(is_reasoning=False, sequence=sequence)
        if self._message is not None:
            messages += self._close(self._message, COMPLETED, text)
        for call in result.get("tool_calls") or ():
            messages += self._open_call(call["id"], call["name"], call["arguments"])
        return messages

    def on_stage_restarted(self, data: Json, sequence: int) -> Messages:
        """The open items of the stage are void: they end without text."""
        if not is_model_stage(data["stage_id"]):
            return []
        return [message for text in self._open_texts() for message in self._close(text, INCOMPLETE, is_void=True)]

    def on_tool_call(self, data: Json, sequence: int) -> Messages:
        """The call runs, perhaps with arguments that an approval changed."""
        if (call := self._calls.get(data["call_id"])) is not None:
            call[1]["arguments"] = data["arguments"]
        return []

    def on_tool_result(self, data: Json, sequence: int) -> Messages:
        """The call has ended."""
        call_id, content, is_error = data["call_id"], data.get("content") or "", bool(data.get("is_error"))
        messages = [] if call_id in self._calls else self._open_call(call_id, data["name"], "")
        index, item = self._calls.pop(call_id)
        error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": content}]}
        item |= {"output": None, "error": error} if is_error else {"output": content, "error": None}
        item["status"] = "failed" if is_error else COMPLETED
        kind = "response.mcp_call.failed" if is_error else "response.mcp_call.completed"
        messages.append(self._event(kind, {"item_id": item["id"], "output_index": index}))
        messages.append(self._done(index, item))
        return messages

    def on_approval_required(self, data: Json, sequence: int) -> Messages:
        """A call waits for a person."""
        return self._request_approval(data["call_id"], data["name"], data["arguments"])

    def on_input_required(self, data: Json, sequence: int) -> Messages:
        """The model's question waits for a person."""
        arguments = orjson.dumps({"question": data["question"]}).decode()
        return self._request_approval(data["call_id"], ASK_TOOL, arguments)

    def on_approval_decided(self, data: Json, sequence: int) -> Messages:
        """A person has decided, or the time ran out."""
        item = {
            "type": "mcp_approval_response",
            "id": f"mcpa_{self.run.run_id}_{data['call_id']}",
            "approval_request_id": f"mcpr_{self.run.run_id}_{data['call_id']}",
            "approve": data["decision"] != "deny",
            "reason": data.get("reason") or data.get("text"),
        }
        return self._add_done(item)

    def on_done(self, data: Json, sequence: int) -> Messages:
        """The response is complete."""
        self._usage = _usage(data.get("usage") or {})
        return self._end("response.completed", COMPLETED, data)

    def on_error(self, data: Json, sequence: int) -> Messages:
        """The response has failed."""
        self._error = {"code": "server_error", "message": data.get("error") or "", "type": data.get("code") or ""}
        return self._end("response.failed", "failed", data)

    def on_cancel(self, data: Json, sequence: int) -> Messages:
        """The response is cancelled. The API has no event for that; the status says it."""
        return self._end("response.incomplete", "cancelled", data)

    def _end(self, kind: str, status: str, data: Json) -> Messages:
        messages = [message for text in self._open_texts() for message in self._close(text, INCOMPLETE)]
        for index, item in list(self._calls.values()):
            messages.append(self._done(index, {**item, "status": INCOMPLETE}))
        self._calls.clear()
        self._status = status
        self._completed_at = data["at"] // 1000 if data.get("at") and status == COMPLETED else None
        messages.append(self._lifecycle(kind))
        return messages

    # --- items ---------------------------------------------------------------

    def _open_texts(self) -> list[_OpenText]:
        return [text for text in (self._reasoning, self._message) if text is not None]

    def _say(self, piece: Piece, sequence: int) -> Messages:
        messages: Messages = []
        if (self._reasoning if piece.is_reasoning else self._message) is None:
            messages = self._open(is_reasoning=piece.is_reasoning, sequence=sequence)
        text = self._reasoning if piece.is_reasoning else self._message
        assert text is not None
        text.text.write(piece.text)
        messages.append(text.delta.encode(piece.text, self._sequence_number))
        self._sequence_number += 1
        return messages

    def _open(self, *, is_reasoning: bool, sequence: int) -> Messages:
        prefix = "rs" if is_reasoning else "msg"
        text = _OpenText(self._next_index(), f"{prefix}_{self.run.run_id}_{sequence}", is_reasoning=is_reasoning)
        if is_reasoning:
            self._reasoning = text
        else:
            self._message = text
        return [
            self._added(text.index, text.item(IN_PROGRESS, [])),
            self._event("response.content_part.added", {**text.place, "part": text.part("")}),
        ]

    def _close(self, text: _OpenText, status: str, final: str | None = None, *, is_void: bool = False) -> Messages:
        """Ends an open item. `final` is its text if it differs from the sum of the deltas."""
        words = "" if is_void else text.text.getvalue() if final is None else final
        if text.is_reasoning:
            self._reasoning = None
        else:
            self._message = None
        messages = [
            self._event(f"{text.event_prefix}.done", {**text.place, "text": words, **text.logprobs}),
            self._event("response.content_part.done", {**text.place, "part": text.part(words)}),
            self._done(text.index, text.item(status, [] if is_void else [text.part(words)])),
        ]
        if is_void:
            del self._done_items[text.index]
        return messages

    def _open_call(self, call_id: str, name: str, arguments: str) -> Messages:
        item = {
            "type": "mcp_call",
            "id": f"mcp_{self.run.run_id}_{call_id}",
            "server_label": SERVER_LABEL,
            "name": name,
            "arguments": arguments,
            "output": None,
            "error": None,
            "status": IN_PROGRESS,
        }
        index = self._next_index()
        self._calls[call_id] = (index, item)
        place = {"item_id": item["id"], "output_index": index}
        return [
            self._added(index, {**item, "arguments": ""}),
            self._event("response.mcp_call.in_progress", place),
            self._event("response.mcp_call_arguments.delta", {**place, "delta": arguments}),
            self._event("response.mcp_call_arguments.done", {**place, "arguments": arguments}),
        ]

    def _request_approval(self, call_id: str, name: str, arguments: str) -> Messages:
        return self._add_done(
            {
                "type": "mcp_approval_request",
                "id": f"mcpr_{self.run.run_id}_{call_id}",
                "name": name,
                "arguments": arguments,
                "server_label": SERVER_LABEL,
            }
        )

    def _add_done(self, item: Json) -> Messages:
        index = self._next_index()
        return [self._added(index, item), self._done(index, item)]

    def _next_index(self) -> int:
        self._items_added += 1
        return self._items_added - 1

    # --- messages ------------------------------------------------------------

    def _added(self, index: int, item: Json) -> bytes:
        return self._event("response.output_item.added", {"output_index": index, "item": item})

    def _done(self, index: int, item: Json) -> bytes:
        self._done_items[index] = item
        return self._event("response.output_item.done", {"output_index": index, "item": item})

    def _lifecycle(self, kind: str) -> bytes:
        return self._event(kind, {"response": self.response()})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        message = encode_event({"type": kind, "sequence_number": self._sequence_number, **fields})
        self._sequence_number += 1
        return message


def _usage(usage: Json) -> Json:
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {name: usage.get(name) or 0 for name in ("cached_tokens", "cache_write_tokens")},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens", 0),
    }
