"""Reads an answer of the Responses API; sans-IO.

    response.created
      output_item.added  ──▶ content_part.added, output_text.delta …   ──▶ output_item.done      a message
      output_item.added  ──▶ reasoning_summary_text.delta …            ──▶ output_item.done      reasoning
      output_item.added  ──▶ function_call_arguments.delta …           ──▶ output_item.done      a call
    response.completed | response.incomplete | response.failed

Each event is assigned by its `output_index`: ids of items may change between two events of one item, and count only
where a server sends no index. Text and arguments are streamed as they come. If the event that ends them has more than
was streamed (some servers send no deltas), the rest follows. An item goes back to the provider as `output_item.done`
had it: what `output_item.added` has is incomplete, and the last event encrypts reasoning once more.
Spec: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stagebus.worker.model.chat_chunks import AnswerItems, Chunk
from stagebus.worker.model.compat.error_shapes import ReportedError, parse_error
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

FUNCTION_CALL: Final = "function_call"
# A call whose arguments are free text. Stagebus offers no such tool; a model that calls one anyway gets an error result.
_CUSTOM_CALL: Final = "custom_tool_call"
_CALLS: Final[Mapping[str, str]] = {FUNCTION_CALL: "arguments", _CUSTOM_CALL: "input"}
REASONING: Final = "reasoning"
MESSAGE: Final = "message"

# The field of a chunk's delta for each kind of streamed text.
_FIELDS: Final[Mapping[str, str]] = {
    "output_text": "content",
    "refusal": "refusal",
    "reasoning_summary_text": "reasoning_content",
    "reasoning_text": "reasoning_content",
}
# Text of parts in a complete item: the kind of the text, and the field that has it.
_PARTS: Final[Mapping[str, tuple[str, str]]] = {
    "output_text": ("output_text", "text"),
    "refusal": ("refusal", "refusal"),
    "summary_text": ("reasoning_summary_text", "text"),
    "reasoning_text": ("reasoning_text", "text"),
}
# Items that ask the client to do something which Stagebus never offers. They would go back without an answer.
_CLIENT_ITEMS: Final = frozenset({"local_shell_call", "apply_patch_call", "computer_call", "mcp_approval_request"})
_FINISH_REASONS: Final[Mapping[str, str]] = {"max_output_tokens": "length", "content_filter": "content_filter"}
_FINAL: Final = "final_answer"

_Place = tuple[str, int, int]  # the kind of a text, its output_index, and the index of its part


class _Streamed:
    """A text of which pieces were streamed. An event that has its whole may come any number of times."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._measured = 0  # so many pieces have so many characters
        self._chars = 0

    def take_rest(self, whole: str) -> str:
        """Returns the end of the whole text that was not streamed, and adds it."""
        self._chars += sum(map(len, self.pieces[self._measured :]))
        self._measured = len(self.pieces)
        if len(whole) <= self._chars:
            return ""
        before = "".join(self.pieces)
        self.pieces, self._measured = [before], 1
        if not whole.startswith(before):
            return ""
        rest = whole[self._chars :]
        self.pieces.append(rest)
        return rest


class _Call:
    """A function call, by its place among the calls."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.arguments = _Streamed()


class ResponsesReader(EventReader):
    """Takes the body of a 200 response of POST /responses and returns chat completion chunks."""

    def __init__(self, output_max_bytes: int) -> None:
        super().__init__(output_max_bytes)
        self._texts: dict[_Place, _Streamed] = {}
        self._calls: dict[int, _Call] = {}
        self._index_by_id: dict[str, int] = {}
        self._done: set[int] = set()  # the output_index of each complete item
        self._items_by_index: dict[int, Item] = {}
        self._handlers = {
            "response.output_text.delta": self._on_text,
            "response.created": self._on_response,
            "response.in_progress": self._on_response,
            "response.queued": self._on_response,
            "response.output_item.added": self._on_item_added,
            "response.output_item.done": self._on_item_done,
            "response.function_call_arguments.delta": self._on_arguments,
            "response.function_call_arguments.done": self._on_arguments_done,
            "response.custom_tool_call_input.delta": self._on_arguments,
            "response.custom_tool_call_input.done": self._on_arguments_done,
            "response.completed": self._on_end,
            "response.incomplete": self._on_end,
            "response.failed": self._on_failed,
            "response.cancelled": self._on_failed,
            "error": self._on_error,
        }
        for kind in _FIELDS:
            self._handlers.setdefault(f"response.{kind}.delta", self._on_other_text)
            self._handlers[f"response.{kind}.done"] = self._on_text_done

    # --- text ----------------------------------------------------------------

    def _on_text(self, event: Event) -> Sequence[Chunk]:
        text = event.get("delta")
        if not isinstance(text, str):
            return ()
        place = ("output_text", self._index_of(event), _part_index(event, "content_index"))
        try:
            self._texts[place].pieces.append(text)
        except KeyError:
            self._streamed(place).pieces.append(text)
        return self._delta("content", text)

    def _on_other_text(self, event: Event) -> Sequence[Chunk]:
        kind, text = event["type"].split(".")[1], text_of(event.get("delta"))
        self._streamed(self._place(kind, event)).pieces.append(text)
        return self._delta(_FIELDS[kind], text)

    def _on_text_done(self, event: Event) -> Sequence[Chunk]:
        kind = event["type"].split(".")[1]
        return self._complete_text(
            self._place(kind, event), text_of(event.get("refusal" if kind == "refusal" else "text"))
        )

    def _complete_text(self, place: _Place, whole: str) -> Sequence[Chunk]:
        """Returns the part of a text that was not streamed."""
        return self._delta(_FIELDS[place[0]], self._streamed(place).take_rest(whole))

    def _place(self, kind: str, event: Event) -> _Place:
        name = "summary_index" if kind == "reasoning_summary_text" else "content_index"
        return kind, self._index_of(event), _part_index(event, name)

    def _streamed(self, place: _Place) -> _Streamed:
        return self._texts.setdefault(place, _Streamed())

    # --- items ---------------------------------------------------------------

    def _index_of(self, event: Event) -> int:
        """Returns the place of an event's item: its `output_index`, or for servers that send none a place by its id."""
        index = event.get("output_index")
        if type(index) is int:
            return index
        item_id = text_of(event.get("item_id")) or text_of(mapping_of(event.get("item")).get("id"))
        if item_id not in self._index_by_id:
            self._count(item_id)
        return self._index_by_id.setdefault(item_id, len(self._index_by_id))

    def _on_item_added(self, event: Event) -> Sequence[Chunk]:
        item = mapping_of(event.get("item"))
        return self._open_call(self._index_of(event), item) if text_of(item.get("type")) in _CALLS else ()

    def _open_call(self, output_index: int, item: Mapping[str, Any]) -> Sequence[Chunk]:
        name = text_of(item.get("name"))
        if not name or output_index in self._calls:
            return ()  # without a name it is opened when it is complete
        call = self._calls[output_index] = _Call(len(self._calls))
        # Some servers have no call_id. The item's id is unique, too.
        call_id = text_of(item.get("call_id")) or text_of(item.get("id"))
        return (self._call_delta(call.index, {"name": name, "arguments": ""}, id=call_id, type="function"),)

    def _on_arguments(self, event: Event) -> Sequence[Chunk]:
        call, piece = self._calls.get(self._index_of(event)), text_of(event.get("delta"))
        if call is None or not piece:
            return ()
        call.arguments.pieces.append(piece)
        return (self._call_delta(call.index, {"arguments": piece}),)

    def _on_arguments_done(self, event: Event) -> Sequence[Chunk]:
        whole = text_of(event.get("arguments")) or text_of(event.get("input"))
        return self._complete_arguments(self._index_of(event), whole)

    def _complete_arguments(self, output_index: int, whole: str) -> Sequence[Chunk]:
        call = self._calls.get(output_index)
        rest = call.arguments.take_rest(whole) if call is not None else ""
        if call is None or not rest:
            return ()
        return (self._call_delta(call.index, {"arguments": rest}),)

    def _on_item_done(self, event: Event) -> Sequence[Chunk]:
        return self._complete_item(self._index_of(event), mapping_of(event.get("item")))

    def _complete_item(self, output_index: int, item: Mapping[str, Any]) -> Sequence[Chunk]:
        if output_index in self._done:
            return ()
        self._done.add(output_index)
        if self._fits(item):
            self._items_by_index[output_index] = dict(item)
        else:
            self._items_by_index.clear()
        chunks: list[Chunk] = []
        if (arguments := _CALLS.get(str(item.get("type")))) is not None:
            chunks += self._open_call(output_index, item)
            chunks += self._complete_arguments(output_index, text_of(item.get(arguments)))
        for parts in (item.get("summary"), item.get("content")):
            for part_index, part in enumerate(list_of(parts)):
                kind, field = _PARTS.get(str(part.get("type")), ("", ""))
                if kind:
                    chunks += self._complete_text((kind, output_index, part_index), text_of(part.get(field)))
        return chunks

    # --- the whole response --------------------------------------------------

    def _on_response(self, event: Event) -> Sequence[Chunk]:
        if self._model is None:
            self._model = text_of(mapping_of(event.get("response")).get("model")) or None
        return ()

    def _on_end(self, event: Event) -> Sequence[Chunk]:
        self._on_response(event)
        response = mapping_of(event.get("response"))
        if response.get("status") in ("failed", "cancelled"):
            return self._on_failed(event)
        chunks: list[Chunk] = []
        if not self._done:  # else the items are known; here they may have other indexes, ids and encryptions
            for index, item in enumerate(list_of(response.get("output"))):
                chunks += self._complete_item(index, item)
        self.is_done = True
        reason = mapping_of(response.get("incomplete_details")).get("reason")
        is_incomplete = response.get("status") == "incomplete" or event.get("type") == "response.incomplete"
        if is_incomplete:
            finish_reason = _FINISH_REASONS.get(str(reason), text_of(reason) or "length")
        else:
            finish_reason = "tool_calls" if self._calls else "stop"
        items = answer_items(self._ordered_items(), is_incomplete=is_incomplete)
        return [*chunks, *self._last_chunks(finish_reason, chat_usage(mapping_of(response.get("usage"))), items)]

    def _ordered_items(self) -> list[Item]:
        """Returns the complete items in the order of their places."""
        return [self._items_by_index[index] for index in sorted(self._items_by_index)]

    def _read_whole(self, event: Event) -> Sequence[Chunk]:
        return self._on_end({"response": event}) if event.get("object") == "response" else ()

    def _on_error(self, event: Event) -> Sequence[Chunk]:
        # The error is nested, or its fields are beside the event's type.
        error = event.get("error")
        raise failure(parse_error(error or {name: value for name, value in event.items() if name != "type"}))

    def _on_failed(self, event: Event) -> Sequence[Chunk]:
        error = mapping_of(event.get("response")).get("error")
        raise failure(parse_error(error) if error else ReportedError("the response failed", type="server_error"))


def _part_index(event: Event, name: str) -> int:
    return max(index_of(event.get(name)), 0)


def answer_items(items: Sequence[Item], *, is_incomplete: bool) -> AnswerItems:
    """Returns what goes back to the provider, in order, and the text of the final answer if there is commentary as well.

    A call is only marked: what goes back are its id and its arguments in the conversation. OpenAI refuses reasoning
    without the item that followed it, so reasoning before a dropped item, or at the end of a cut answer, is dropped.
    Nothing is kept if it would be no more than the text and the calls.
    """
    kept: list[Item] = []
    for item in items:
        if _is_for_client(item):
            _drop_reasoning_at_end(kept)
        elif item.get("type") != REASONING or item.get("encrypted_content") or item.get("content"):
            kept.append(_plain(item))
    if is_incomplete:
        _drop_reasoning_at_end(kept)
    messages = [item for item in items if item.get("type") == MESSAGE]
    finals = [message for message in messages if message.get("phase") == _FINAL]
    final_text = None
    if finals and len(finals) < len(messages):
        final_text = "".join(
            text_of(part.get("text")) for message in finals for part in list_of(message.get("content"))
        )
    has_own = any(item.get("type") not in (FUNCTION_CALL, MESSAGE) or item.get("phase") for item in kept)
    return AnswerItems("responses", kept if has_own else [], final_text)


def _is_for_client(item: Item) -> bool:
    kind = text_of(item.get("type"))
    if kind == "shell_call":
        return not item.get("environment")
    return kind in _CLIENT_ITEMS or (kind == "tool_search_call" and item.get("execution") == "client")


def _drop_reasoning_at_end(items: list[Item]) -> None:
    while items and items[-1].get("type") == REASONING:
        del items[-1]


def _plain(item: Item) -> Item:
    """Returns the part of an item that goes back, in a form that needs no id of a message or a call."""
    kind = text_of(item.get("type"))
    if kind in _CALLS:
        return {"type": FUNCTION_CALL}
    whole = {name: value for name, value in item.items() if value is not None}
    if kind == MESSAGE:
        parts = list_of(item.get("content"))
        text = "".join(text_of(part.get("text")) or text_of(part.get("refusal")) for part in parts)
        phase = {"phase": item["phase"]} if item.get("phase") else {}
        return {"type": MESSAGE, "role": "assistant", "content": text, **phase}
    if kind == REASONING and item.get("encrypted_content"):
        names = ("type", "id", "summary", "encrypted_content", "format")
        return {"summary": [], **{name: whole[name] for name in names if name in whole}}
    return whole


def chat_usage(usage: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the usage with the names of chat completions; None if there is none."""
    if not usage:
        return None
    prompt, answer = mapping_of(usage.get("input_tokens_details")), mapping_of(usage.get("output_tokens_details"))
    prompt_tokens, completion_tokens = count_of(usage.get("input_tokens")), count_of(usage.get("output_tokens"))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": count_of(usage.get("total_tokens")) or prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            name: count_of(prompt.get(name)) for name in ("cached_tokens", "cache_write_tokens") if name in prompt
        },
        "completion_tokens_details": {
            name: count_of(answer.get(name)) for name in ("reasoning_tokens",) if name in answer
        },
    }
