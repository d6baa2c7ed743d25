"""The fold of the AI SDK's UI message stream, version 1: a run as the chunks of one assistant message.

A step is a model stage and the tools stage after it. A model stage that starts again resets its step (`reset-step`,
AI SDK 7), and so does a stage whose text turns out to be another than its deltas. Tools are run by Stagebus, so their
calls are `providerExecuted`: the client must not run them.
Spec: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol#data-stream-protocol
"""

from typing import Any, Final

import orjson

from stagebus.gateway.streaming.fold import Fold, Json, RunFacts, encode_data
from stagebus.gateway.streaming.model_pieces import is_model_stage, pieces_of
from stagebus.shared.domain.runs import TOOLS

# Ends the response after the last chunk. It is no chunk and has no index.
DONE: Final = b"data: [DONE]\n\n"

_FINISH_REASONS: Final = {"length": "length", "max_tokens": "length", "content_filter": "content-filter"}
_TEXT: Final = "text"
_REASONING: Final = "reasoning"


class UiMessageFold(Fold):
    """The chunks of a run's assistant message. It keeps the text of the current model stage."""

    def __init__(self, run: RunFacts) -> None:
        super().__init__(run)
        self._open: tuple[str, str] | None = None  # kind and id of the part that is being written
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._denied: set[str] = set()
        self._finish_reason: str | None = None

    def on_run_queued(self, data: Json, sequence: int) -> list[bytes]:
        """Begins the message. Its id is the same in every replay: a client replaces the message that has it."""
        metadata = {"runId": self.run.run_id}
        return [encode_data({"type": "start", "messageId": f"msg_{self.run.run_id}", "messageMetadata": metadata})]

    def on_stage_started(self, data: Json, sequence: int) -> list[bytes]:
        """Begins a step with each model stage."""
        if not is_model_stage(data["stage_id"]):
            return []
        self._forget()
        return [encode_data({"type": "start-step"})]

    def on_tool_completion_chunk(self, data: Json, sequence: int) -> list[bytes]:
        """Passes text and reasoning on as they come."""
        chunks: list[bytes] = []
        for piece in pieces_of(data["tool_results"]):
            kind = _REASONING if piece.is_reasoning else _TEXT
            (self._reasoning if piece.is_reasoning else self._texts).append(piece.text)
            chunks += self._write(kind, piece.text, sequence)
        return chunks

    def on_stage_restarted(self, data: Json, sequence: int) -> list[bytes]:
        """Takes back what the stage's first go has said."""
        return self._reset() if is_model_stage(data["stage_id"]) else []

    def on_stage_completed(self, data: Json, sequence: int) -> list[bytes]:
        """Ends the open part, corrects the text if the result has another one, and gives the calls."""
        if data["stage_id"].partition(".")[0] == TOOLS:
            return [encode_data({"type": "finish-step"})]
        result = data["result"]
        self._finish_reason = result.get("finish_reason")
        text = result.get("text") or ""
        chunks = self._end_part()
        if text != "".join(self._texts):
            chunks += self._rewrite(text, sequence)
        calls = result.get("tool_calls") or []
        chunks += [encode_data(self._call(call)) for call in calls]
        return chunks if calls else [*chunks, encode_data({"type": "finish-step"})]

    def on_approval_required(self, data: Json, sequence: int) -> list[bytes]:
        """Shows that a call waits for a person."""
        call_id = self._call_id(data)
        return [encode_data({"type": "tool-approval-request", "approvalId": call_id, "toolCallId": call_id})]

    def on_approval_decided(self, data: Json, sequence: int) -> list[bytes]:
        """Remembers denied calls; their results say so."""
        if data["decision"] == "deny":
            self._denied.add(data["call_id"])
        return []

    def on_tool_result(self, data: Json, sequence: int) -> list[bytes]:
        """Gives the result of a call."""
        chunk: Json = {"toolCallId": self._call_id(data)}
        if data["call_id"] in self._denied:
            chunk["type"] = "tool-output-denied"
        elif data.get("is_error"):
            chunk |= {"type": "tool-output-error", "errorText": data["content"], **_OURS}
        else:
            chunk |= {"type": "tool-output-available", "output": _parse(data["content"]), **_OURS}
        return [encode_data(chunk)]

    def on_done(self, data: Json, sequence: int) -> list[bytes]:
        """Finishes the message."""
        reason = _FINISH_REASONS.get(self._finish_reason or "", "stop")
        return [_finish(reason, usage=_usage(data.get("usage") or {}))]

    def on_cancel(self, data: Json, sequence: int) -> list[bytes]:
        """Ends the message where it was cancelled."""
        abort = {"type": "abort", "reason": data.get("reason") or "the run was cancelled"}
        return [*self._end_part(), encode_data(abort), _finish("other")]

    def on_error(self, data: Json, sequence: int) -> list[bytes]:
        """Ends the message with the run's error."""
        return [*self._end_part(), encode_data({"type": "error", "errorText": data["error"]}), _finish("error")]

    def _write(self, kind: str, text: str, sequence: int) -> list[bytes]:
        chunks: list[bytes] = []
        if self._open is None or self._open[0] != kind:
            chunks = self._end_part()
            self._open = kind, f"{kind}_{sequence}"
            chunks.append(encode_data({"type": f"{kind}-start", "id": self._open[1]}))
        chunks.append(encode_data({"type": f"{kind}-delta", "id": self._open[1], "delta": text}))
        return chunks

    def _end_part(self) -> list[bytes]:
        if self._open is None:
            return []
        (kind, part_id), self._open = self._open, None
        return [encode_data({"type": f"{kind}-end", "id": part_id})]

    def _rewrite(self, text: str, sequence: int) -> list[bytes]:
        """Writes the stage's parts again, with the text of its result."""
        reasoning = "".join(self._reasoning)
        chunks = self._reset() if self._texts else []
        if chunks and reasoning:
            chunks += self._write(_REASONING, reasoning, sequence)
        if text:
            chunks += self._write(_TEXT, text, sequence)
        return [*chunks, *self._end_part()]

    def _reset(self) -> list[bytes]:
        self._forget()
        return [encode_data({"type": "reset-step"})]

    def _forget(self) -> None:
        self._open, self._texts, self._reasoning = None, [], []

    def _call(self, call: Json) -> Json:
        return {
            "type": "tool-input-available",
            "toolCallId": f"{self.run.run_id}.{call['id']}",
            "toolName": call["name"],
            "input": _parse(call["arguments"], is_any=True),
            **_OURS,
        }

    def _call_id(self, data: Json) -> str:
        return f"{self.run.run_id}.{data['call_id']}"


_OURS: Final = {"providerExecuted": True, "dynamic": True}


def _parse(text: str, *, is_any: bool = False) -> Any:
    """Returns the JSON of a text as it was written, so that numbers keep their digits; else the text itself.

    Args:
        is_any: not only objects and arrays.
    """
    try:
        value = orjson.loads(text)
    except ValueError:
        return text
    return orjson.Fragment(text.encode()) if is_any or isinstance(value, dict | list) else text


def _usage(usage: Json) -> Json:
    names = {"inputTokens": "prompt_tokens", "outputTokens": "completion_tokens", "totalTokens": "total_tokens"}
    return {name: usage.get(field, 0) for name, field in names.items()}


def _finish(reason: str, **metadata: Json) -> bytes:
    """Returns the last chunk. Without it, the workflow transport asks again without end and without a pause."""
    chunk: Json = {"type": "finish", "finishReason": reason}
    return encode_data(chunk | ({"messageMetadata": metadata} if metadata else {})) + DONE
