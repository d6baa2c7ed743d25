"""Reads an answer of Anthropic's Messages API; sans-IO.

    message_start        usage of the prompt; sometimes whole blocks already
      content_block_start, content_block_delta …, content_block_stop      text, thinking, tool_use, …
    message_delta        the reason of the end, and the usage so far
    message_stop

`ping` may come anywhere, and unknown events, blocks and deltas are ignored. Thinking is signed or encrypted: its blocks
go back unchanged, in their order, before the calls. If the provider pauses a turn (`pause_turn`, after many searches of
its own), the blocks go back at once and the answer goes on.
Spec: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from stagebus.worker.model.chat_chunks import AnswerItems, Chunk
from stagebus.worker.model.compat.call_fragments import arguments_text
from stagebus.worker.model.compat.error_shapes import parse_error
from stagebus.worker.model.event_reader import (
    Event,
    EventReader,
    Item,
    count_of,
    failure,
    index_of,
    list_of,
    mapping_of,
    text_of,
)

TEXT: Final = "text"
THINKING: Final = "thinking"
TOOL_USE: Final = "tool_use"

# How often one answer is continued after a pause.
CONTINUATIONS_MAX: Final = 16
_PAUSE: Final = "pause_turn"
_FINISH_REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
_CUT: Final = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
_PROMPT_COUNTS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class _Block:
    """A content block that is being streamed."""

    def __init__(self, item: Item, call_index: int | None) -> None:
        self.item = item
        self.call_index = call_index  # its place among the calls if the client runs it
        self.pieces: dict[str, list[str]] = {}  # the streamed parts of each field
        self.citations: list[Any] = []

    def add(self, field: str, piece: str) -> None:
        self.pieces.setdefault(field, []).append(piece)

    def whole(self) -> Item:
        """Returns the block with its streamed parts."""
        item = {name: value for name, value in self.item.items() if value is not None}
        for field, pieces in self.pieces.items():
            if field == "input":
                item["input"] = _parse_input("".join(pieces))
            else:
                item[field] = text_of(item.get(field)) + "".join(pieces)
        return item | ({"citations": self.citations} if self.citations else {})


class MessagesReader(EventReader):
    """Takes the body of a 200 response of POST /v1/messages and returns chat completion chunks."""

    def __init__(self, output_max_bytes: int) -> None:
        super().__init__(output_max_bytes)
        self._blocks: dict[int, _Block] = {}  # those that are being streamed, by index
        self._items: list[Item] = []
        self._are_items_kept = True
        self._calls = 0
        self._stop_reason: str | None = None
        self._explanation = ""
        self._has_text = False
        self._usage: dict[str, int] = {}
        self._usage_before: dict[str, int] = {}  # of the parts of the answer before a pause
        self._continuations = 0
        self._handlers = {
            "content_block_delta": self._on_delta,
            "content_block_start": self._on_block_start,
            "content_block_stop": self._on_block_stop,
            "message_start": self._on_message_start,
            "message_delta": self._on_message_delta,
            "message_stop": self._on_message_stop,
            "error": self._on_error,
        }

    # --- blocks --------------------------------------------------------------

    def _on_delta(self, event: Event) -> Sequence[Chunk]:
        delta, block = event.get("delta"), self._blocks.get(index_of(event.get("index")))
        if block is None or not isinstance(delta, dict):
            return ()
        kind = delta.get("type")
        if kind == "text_delta" and isinstance(text := delta.get("text"), str):
            block.add("text", text)
            self._has_text = True
            return self._delta("content", text)
        if kind == "thinking_delta" and isinstance(text := delta.get("thinking"), str):
            block.add("thinking", text)
            return self._delta("reasoning_content", text)
        if kind == "input_json_delta" and (piece := text_of(delta.get("partial_json"))):
            block.add("input", piece)
            self._count(piece)
            return () if block.call_index is None else (self._call_delta(block.call_index, {"arguments": piece}),)
        if kind == "signature_delta":  # whole, once
            block.item["signature"] = delta.get("signature")
            self._count(delta)
        elif kind == "citations_delta":
            block.citations.append(delta.get("citation"))
            self._count(delta)
        elif kind == "compaction_delta":
            block.item |= {name: value for name, value in delta.items() if name != "type"}
            self._count(delta)
        return ()

    def _on_block_start(self, event: Event) -> Sequence[Chunk]:
        return self._start_block(index_of(event.get("index")), mapping_of(event.get("content_block")))

    def _start_block(self, index: int, item: Mapping[str, Any]) -> Sequence[Chunk]:
        chunks: list[Chunk] = []
        call_index = None
        if item.get("type") == TOOL_USE:
            call_index, self._calls = self._calls, self._calls + 1
            call_id, name = text_of(item.get("id")), text_of(item.get("name"))
            chunks.append(self._call_delta(call_index, {"name": name, "arguments": ""}, id=call_id, type="function"))
        self._blocks[index] = _Block(dict(item), call_index)
        self._count(item)
        chunks += self._delta("content", text_of(item.get("text")) if item.get("type") == TEXT else "")
        chunks += self._delta("reasoning_content", text_of(item.get("thinking")))
        return chunks

    def _on_block_stop(self, event: Event) -> Sequence[Chunk]:
        return self._stop_block(index_of(event.get("index")))

    def _stop_block(self, index: int) -> Sequence[Chunk]:
        block = self._blocks.pop(index, None)
        if block is None:
            return ()
        item = block.whole()
        self._keep(item)
        if block.call_index is None or "input" in block.pieces or not item.get("input"):
            return ()
        # The whole input came with the block's start.
        return (self._call_delta(block.call_index, {"arguments": arguments_text(item["input"])}),)

    def _keep(self, item: Item) -> None:
        self._are_items_kept = self._are_items_kept and self._fits(item)
        if not self._are_items_kept:
            self._items.clear()
        elif text_of(item.get("type")):
            self._items.append(item)

    # --- the whole message ---------------------------------------------------

    def _on_message_start(self, event: Event) -> Sequence[Chunk]:
        return self._start_message(mapping_of(event.get("message")))

    def _start_message(self, message: Mapping[str, Any]) -> Sequence[Chunk]:
        self._model = self._model or text_of(message.get("model")) or None
        self._stop_reason = None
        self._end_with(message)
        chunks: list[Chunk] = []
        for index, item in enumerate(list_of(message.get("content"))):
            chunks += (*self._start_block(index, item), *self._stop_block(index))
        return chunks

    def _on_message_delta(self, event: Event) -> Sequence[Chunk]:
        self._end_with({**mapping_of(event.get("delta")), "usage": event.get("usage")})
        return ()

    def _end_with(self, message: Mapping[str, Any]) -> None:
        """Records how the message ends. A later count replaces an earlier one."""
        self._stop_reason = text_of(message.get("stop_reason")) or self._stop_reason
        self._explanation = text_of(mapping_of(message.get("stop_details")).get("explanation")) or self._explanation
        usage = mapping_of(message.get("usage"))
        thinking = mapping_of(usage.get("output_tokens_details")).get("thinking_tokens")
        counts = {**usage, "thinking_tokens": thinking}
        for name in (*_PROMPT_COUNTS, "output_tokens", "thinking_tokens"):
            if isinstance(counts.get(name), int):
                self._usage[name] = count_of(counts[name])

    def _on_message_stop(self, event: Event) -> Sequence[Chunk]:  # noqa: ARG002 - a handler
        return self._end()

    def _end(self) -> Sequence[Chunk]:
        self.is_done = True
        if self._is_paused:
            return ()
        reason = self._stop_reason or ""
        chunks: list[Chunk] = []
        if reason == "refusal" and self._explanation and not self._has_text:
            chunks += self._delta("refusal", self._explanation)
        finish_reason = _FINISH_REASONS.get(reason, reason) or ("tool_calls" if self._calls else "stop")
        items = _items_back(self._items, is_cut=reason in _CUT)
        return [
            *chunks,
            *self._last_chunks(finish_reason, chat_usage(self._total_usage()), AnswerItems("messages", items)),
        ]

    def _finish_without_last_event(self) -> Sequence[Chunk]:
        return self._end() if self._stop_reason is not None else ()

    def _read_whole(self, event: Event) -> Sequence[Chunk]:
        if event.get("type") != "message":
            return ()
        return [*self._start_message(event), *self._end()]

    def _total_usage(self) -> dict[str, int]:
        names = {**self._usage_before, **self._usage}
        return {name: self._usage_before.get(name, 0) + self._usage.get(name, 0) for name in names}

    @property
    def _is_paused(self) -> bool:
        return self._stop_reason == _PAUSE and self._are_items_kept and self._continuations < CONTINUATIONS_MAX

    def continuation(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the body that continues an answer which the provider paused; None if the answer is complete."""
        if not self._is_paused:
            return None
        self._continuations += 1
        self._usage_before, self._usage = self._total_usage(), {}
        self._decoder, self._blocks, self.is_done, self._has_bytes = type(self._decoder)(), {}, False, False
        messages, before = body["messages"], len(body["messages"])
        if self._continuations > 1:
            before -= 1  # the assistant's message of the last continuation, which these blocks replace
        content = [item for item in self._items if not _is_empty_text(item)]
        return {**body, "messages": [*messages[:before], {"role": "assistant", "content": content}]}

    def _on_error(self, event: Event) -> Sequence[Chunk]:
        raise failure(parse_error(event.get("error") or {n: value for n, value in event.items() if n != "type"}))


def _parse_input(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}  # cut off


def _is_empty_text(item: Item) -> bool:
    return item.get("type") == TEXT and not item.get("text")


def _items_back(items: Sequence[Item], *, is_cut: bool) -> list[Item]:
    """Returns the blocks that go back to the provider; none if they would be no more than the text and the calls.

    A call is only marked: what goes back are its id and its arguments in the conversation. Empty text is refused, and
    so is thinking that was cut off before its signature.
    """
    kept = []
    for item in items:
        if item.get("type") == TOOL_USE:
            kept.append({name: value for name, value in item.items() if name not in ("id", "name", "input")})
        elif not _is_empty_text(item) and not (is_cut and item.get("type") == THINKING and not item.get("signature")):
            kept.append(item)
    return kept if any(item.get("type") not in (TEXT, TOOL_USE) or _has_more(item) for item in kept) else []


def _has_more(item: Item) -> bool:
    caller = mapping_of(item.get("caller")).get("type")
    return bool(item.get("citations")) or caller not in (None, "direct")


def chat_usage(usage: Mapping[str, int]) -> dict[str, Any] | None:
    """Returns the usage with the names of chat completions; None if there is none.

    Anthropic counts what was read from or written to the cache beside the prompt, chat completions as a part of it.
    """
    if not usage:
        return None
    prompt_tokens, completion_tokens = sum(usage.get(name, 0) for name in _PROMPT_COUNTS), usage.get("output_tokens", 0)
    details = (("cached_tokens", "cache_read_input_tokens"), ("cache_write_tokens", "cache_creation_input_tokens"))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {name: usage[theirs] for name, theirs in details if theirs in usage},
        "completion_tokens_details": (
            {"reasoning_tokens": usage["thinking_tokens"]} if "thinking_tokens" in usage else {}
        ),
    }
