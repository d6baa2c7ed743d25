"""Reads an answer whose stream consists of typed events, and translates it to chat completion chunks; sans-IO.

    event: response.output_text.delta
    data: {"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"Hel"}

The base of the readers of the Responses API and of the Messages API. What both have in common is here: bytes become
events, every event counts for the output limit, a failure comes after the chunks before it, and the items that have
to go back to the provider are collected. The type of an event is in its data; its name is not needed, and some
servers send none.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from stagebus.shared.domain.model_items import ITEMS_MAX_BYTES
from stagebus.shared.errors import ModelError, ModelOutputTooLong, ModelUnavailable
from stagebus.worker.model import provider_errors
from stagebus.worker.model.chat_chunks import ITEMS_KEY, AnswerItems, BadChunk, Chunk, ChunkDecoder, EventTooLong
from stagebus.worker.model.chat_response import CHUNK_MIN_BYTES, ErrorChunk, incomplete
from stagebus.worker.model.compat.error_shapes import ReportedError, error_in_chunk

Event = dict[str, Any]
Item = dict[str, Any]

_EVENT_NAME: Final = re.compile(rb"(?:response|message|content_block)[._]|error|message$|$")


class EventDecoder(ChunkDecoder):
    """Returns each event's data, whatever its type."""

    def _must_be_chunk(self) -> bool:
        return _EVENT_NAME.match(self._event) is not None

    def _take_object(self, chunk: Chunk, chunks: list[Chunk]) -> None:
        if self._event == b"error" and "type" not in chunk and "error" not in chunk:
            chunk = {"type": "error", "error": chunk}
        chunks.append(chunk)


class EventReader:
    """Takes the body of a 200 response and returns chat completion chunks.

    A subclass fills `_handlers`, which return the chunks of an event by its type.

    Args:
        output_max_bytes: limit for the model's output.
    """

    def __init__(self, output_max_bytes: int) -> None:
        self.is_done = False
        self._output_max_bytes = output_max_bytes
        self._output_bytes = 0
        self._has_bytes = False
        self._has_events = False
        self._model: str | None = None
        self._is_begun = False  # the first chunk was returned
        self._items_bytes = 0
        self._decoder = EventDecoder()
        self._handlers: Mapping[Any, Callable[[Event], Sequence[Chunk]]] = {}

    @property
    def has_finish_reason(self) -> bool:
        """True after the stream's last event."""
        return self.is_done

    @property
    def has_final_usage(self) -> bool:
        """True after the stream's last event, which has the usage or follows it."""
        return self.is_done

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yields the chunks that these bytes complete.

        Raises:
            ModelError: the bytes are not an event, hold an error, or exceed the output limit.
        """
        self._has_bytes = True
        try:
            events = self._decoder.feed(data)
        except BadChunk as exc:
            raise ModelUnavailable("the model's provider sent something that is not an event of its API") from exc
        except EventTooLong as exc:
            raise ModelOutputTooLong(f"the model's provider sent {exc}") from exc
        return self._read(events)

    def finish(self, content_type: str = "") -> Iterator[Chunk]:
        """Yields what the end of the body completes.

        Raises:
            ModelError: the answer is incomplete, empty or an error.
        """
        yield from self._read(self._decoder.finish())
        if not self.is_done and self._decoder.is_done:
            yield from self._finish_without_last_event()
        if self.is_done:
            return
        is_empty = not self._has_bytes or self._decoder.is_done
        raise incomplete("an answer of its API", content_type, has_chunks=self._has_events, is_empty=is_empty)

    def continuation(self, body: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - the interface
        """Returns the body that continues an answer which the provider paused; None if the answer is complete."""
        return None

    def _finish_without_last_event(self) -> Sequence[Chunk]:
        """Returns the last chunks if `[DONE]` came in place of the last event."""
        return ()

    def _read(self, events: Sequence[Event]) -> Iterator[Chunk]:
        for event in events:
            if self.is_done:
                return
            self._output_bytes += CHUNK_MIN_BYTES
            kind = event.get("type")
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is not None:
                self._has_events = True
                yield from handler(event)
            elif isinstance(kind, str) and kind.startswith("response."):
                pass  # the progress of a tool that the provider runs itself, and its errors
            elif (error := error_in_chunk(event)) is not None:
                raise failure(error)
            else:
                yield from self._read_whole(event)
            if self._output_bytes > self._output_max_bytes:
                raise ModelOutputTooLong(f"the model's output is longer than {self._output_max_bytes} bytes")

    def _read_whole(self, event: Event) -> Sequence[Chunk]:  # noqa: ARG002 - the interface
        """Returns the chunks of an answer that was not streamed, and none for an unknown event."""
        return ()

    def _delta(self, name: str, text: str) -> Sequence[Chunk]:
        """Returns a chunk with a piece of text, and counts it."""
        if not text:
            return ()
        self._output_bytes += len(text) if text.isascii() else len(text.encode(errors="replace"))
        if self._is_begun:
            return ({"choices": [{"index": 0, "delta": {name: text}}]},)
        return (self._begun({name: text}),)

    def _call_delta(self, index: int, function: Mapping[str, str], **head: str) -> Chunk:
        """Returns a chunk with a piece of a call."""
        self._output_bytes += sum(map(len, (*function.values(), *head.values())))
        call = {"index": index, **head, "function": dict(function)}
        if self._is_begun:
            return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        return self._begun({"tool_calls": [call]})

    def _begun(self, delta: dict[str, Any]) -> Chunk:
        """Returns the first chunk. An error before it may still be answered by another provider."""
        self._is_begun = True
        chunk: Chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", **delta}}]}
        return chunk if self._model is None else {"model": self._model, **chunk}

    def _fits(self, item: Mapping[str, Any]) -> bool:
        """Counts an item that has to go back to the provider. Returns False once they are too many, so that none is kept."""
        # What has no JSON, such as half of a surrogate pair, could not be stored.
        self._items_bytes += _size_of(item, without_json=ITEMS_MAX_BYTES + 1)
        return self._items_bytes <= ITEMS_MAX_BYTES

    def _count(self, value: Any) -> None:
        """Counts output that is kept, but is in no chunk."""
        self._output_bytes += _size_of(value, without_json=len(str(value)))

    def _last_chunks(self, finish_reason: str, usage: Mapping[str, Any] | None, items: AnswerItems) -> list[Chunk]:
        """Returns the chunks that end the answer."""
        choice = {"index": 0, "delta": {}, "finish_reason": finish_reason}
        chunks: list[Chunk] = [{"choices": [choice]}]
        if not self._is_begun:
            chunks = [self._begun({"content": ""}), *chunks]
        if usage:
            chunks.append({"choices": [], "usage": dict(usage)})
        if items.items or items.final_text is not None:
            chunks.append({"choices": [], ITEMS_KEY: items})
        return chunks


def _size_of(value: Any, *, without_json: int) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:
        return without_json


def failure(error: ReportedError) -> ModelError:
    """Returns the error of the run for an error that the provider reported."""
    exc = provider_errors.error_from_report(error)
    exc.__cause__ = ErrorChunk(error)
    return exc


def index_of(value: object) -> int:
    """Returns the value if it is an index. All others are one place, as of a server that sends no index."""
    return value if type(value) is int else -1


def text_of(value: object) -> str:
    """Returns the value if it is text, else an empty text."""
    return value if isinstance(value, str) else ""


def mapping_of(value: object) -> Mapping[str, Any]:
    """Returns the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[dict[str, Any]]:
    """Returns the objects in the value if it is a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count_of(value: object) -> int:
    """Returns the value if it is a number of tokens, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
