r"""Decodes a provider's event stream, from bytes to chat completion chunks; sans-IO.

    data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hel"}}]}

    : a comment that keeps the connection open

    event: error
    data: {"message":"overloaded"}

    data: [DONE]

    {"error":{"message":"a bare JSON text without a field name, on one line or several"}}

Providers follow the specification only roughly. Every deviation that leaves the meaning clear is accepted.
Spec: https://html.spec.whatwg.org/multipage/server-sent-events.html
Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from contextlib import suppress
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.domain.model_items import Api
from stagebus.shared.runtime.exact_json import DEPTH_MAX, is_shallow
from stagebus.worker.model.compat.lenient_json import SurrogateJoiner, loads_leniently

Chunk = dict[str, Any]

# A field of the last chunk of an answer that has no other content: the items of `AnswerItems`. No client gets it.
ITEMS_KEY: Final = "stagebus_items"
EVENT_MAX_BYTES: Final = 4 * 2**20

_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"
_FIELD: Final = b"data:"
# The start of a JSON text without a field name: one chunk per line, or a whole completion or error.
_BARE_STARTS: Final = (b"{", b"[")
# llama.cpp sent its errors in this field.
_ERROR_FIELD: Final = b"error:"
_ERROR_EVENT: Final = b"error"
# Events with these names must hold chunks. Data of other events is ignored unless it is a chunk by its fields.
_CHUNK_EVENTS: Final = (b"", b"message")
_NAMES_OF_CHUNKS: Final = (*_CHUNK_EVENTS, b"chunk", b"data", b"delta", b"completion", b"chat.completion.chunk")


class AnswerItems(NamedTuple):
    """The items of an answer, in the provider's own format, and the part of the text that is the answer.

    Attributes:
        api: the API by which the model was asked.
        final_text: the text of the final answer if the model also wrote commentary; None: all of the text.
    """

    api: Api
    items: list[dict[str, Any]]
    final_text: str | None = None


class BadChunk(ValueError):
    """The data of an event is not a JSON object, so the rest of the stream cannot be trusted."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"not a JSON object: {data[:200]!r}")


class EventTooLong(ValueError):
    """One event exceeds the decoder's limit."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event of more than {limit_bytes} bytes")


class ChunkDecoder:
    """Takes bytes, split anywhere, and returns the chunks that they complete."""

    def __init__(self, event_max_bytes: int = EVENT_MAX_BYTES) -> None:
        self.is_done = False
        self._event_max_bytes = event_max_bytes
        self._is_first_line = True
        self._ends_in_cr = False
        self._line: list[bytes] = []  # the parts of an incomplete line
        self._data: list[bytes] = []  # the data lines of an incomplete event
        self._data_bytes = 0
        self._event = b""
        self._bare: list[bytes] = []  # the lines of a bare JSON text with several lines
        self._bare_bytes = 0
        self._idle_bytes = 0  # since the last chunk
        self._joiner = SurrogateJoiner()

    def feed(self, data: bytes) -> list[Chunk]:
        """Returns the chunks that these bytes complete, and none after `[DONE]`.

        Raises:
            BadChunk: an event cannot be parsed.
            EventTooLong: an event, or what is between two chunks, exceeds `event_max_bytes`.
        """
        if self._ends_in_cr or b"\r" in data:
            data = self._with_lf(data)
        lines = data.split(b"\n")
        rest = lines.pop()
        chunks: list[Chunk] = []
        if lines:
            if self._line:
                lines[0] = b"".join((*self._line, lines[0]))
                self._line = []
            for line in lines:
                self._take_line(line, chunks)
        if rest:
            self._line.append(rest)
        self._idle_bytes = 0 if chunks else self._idle_bytes + len(data)
        if self._idle_bytes > self._event_max_bytes and not self.is_done:
            raise EventTooLong(self._event_max_bytes)
        return chunks

    def finish(self) -> list[Chunk]:
        """Returns the chunks of a last event whose blank line is missing. An incomplete chunk is dropped.

        Call it once, at the end of the body.
        """
        chunks: list[Chunk] = []
        # If an incomplete chunk mattered, the answer has no finish reason, and the reader reports that.
        with suppress(BadChunk):
            self._take_line(b"".join(self._line), chunks)
            self._take_line(b"", chunks)
        if self._bare and not self.is_done:
            with suppress(BadChunk):
                self._take_data(b"\n".join(self._bare), chunks)
        return chunks

    def _with_lf(self, data: bytes) -> bytes:
        """Replaces CR LF and CR by LF, even if a CR LF is split over two reads."""
        if self._ends_in_cr and data.startswith(b"\n"):
            data = data[1:]
            self._ends_in_cr = False
        if data:
            self._ends_in_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take_line(self, line: bytes, chunks: list[Chunk]) -> None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                self._end_event(chunks)
            self._event = b""
        elif line.startswith(b"data:"):
            self._data.append(line[5:])
            self._data_bytes += len(line)
            if self._data_bytes > self._event_max_bytes:
                raise EventTooLong(self._event_max_bytes)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif line.startswith(b" ") and not self._bare and line.lstrip().startswith(_FIELD):
            self._take_line(line.lstrip(), chunks)
        elif self._bare or line.lstrip().startswith(_BARE_STARTS):
            self._take_bare(line, chunks)
        elif line.startswith(_ERROR_FIELD):
            self._event = _ERROR_EVENT
            self._data.append(line.removeprefix(_ERROR_FIELD))
            self._data_bytes += len(line)

    def _take_bare(self, line: bytes, chunks: list[Chunk]) -> None:
        if self.is_done:
            return
        if not self._bare:
            try:
                self._take_data(line, chunks)
            except BadChunk:
                pass  # it may continue on the next line; the end of the body decides
            else:
                return
        self._bare.append(line)
        self._bare_bytes += len(line) + 1
        if self._bare_bytes > self._event_max_bytes:
            raise EventTooLong(self._event_max_bytes)

    def _end_event(self, chunks: list[Chunk]) -> None:
        lines = self._data
        self._data = []
        self._data_bytes = 0
        if self.is_done:
            return
        try:
            self._take_data(lines[0] if len(lines) == 1 else b"\n".join(lines), chunks)
        except BadChunk:
            # Some servers omit the blank line between events, so several events look like one.
            if len(lines) == 1:
                raise
            for line in lines:
                self._take_data(line, chunks)

    def _take_data(self, data: bytes, chunks: list[Chunk]) -> None:
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            data = data.strip().removeprefix(_FIELD).lstrip()  # some proxies add a second "data:"
            if not data or self.is_done:
                return
            if data == _DONE:
                self.is_done = True
                return
            self._take_lenient(data, chunks)
            return
        if len(data) > 2 * DEPTH_MAX and not is_shallow(chunk):
            raise BadChunk(data)
        if isinstance(chunk, dict):
            if "choices" in chunk:  # nearly every chunk
                chunks.append(chunk)
            else:
                self._take_object(chunk, chunks)
        else:
            self._take_other(chunk, data, chunks)

    def _take_object(self, chunk: Chunk, chunks: list[Chunk]) -> None:
        if "choices" in chunk:
            chunks.append(chunk)
        elif self._event == _ERROR_EVENT:
            chunks.append(chunk if "error" in chunk else {"error": chunk})
        elif self._event in _NAMES_OF_CHUNKS or isinstance(chunk.get("usage"), dict):
            inner = chunk.get("data")  # some gateways wrap each answer
            chunks.append(inner if isinstance(inner, dict) and "choices" in inner else chunk)

    def _must_be_chunk(self) -> bool:
        """Returns whether the event that ends here must hold a chunk, by its name."""
        return self._event in _CHUNK_EVENTS

    def _take_lenient(self, data: bytes, chunks: list[Chunk]) -> None:
        try:
            for value in loads_leniently(data, self._joiner):
                if not is_shallow(value):
                    raise BadChunk(data)
                self._take_other(value, data, chunks)
        except ValueError:
            if self._must_be_chunk():
                raise BadChunk(data) from None
            if self._event == _ERROR_EVENT:
                chunks.append({"error": data.decode(errors="replace")})

    def _take_other(self, value: Any, data: bytes, chunks: list[Chunk]) -> None:
        """Takes JSON that is not a chunk itself: null, a list of chunks, or an error's text."""
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if isinstance(item, dict):
                self._take_object(item, chunks)
            elif self._event == _ERROR_EVENT:
                chunks.append({"error": item})
            elif self._event in _NAMES_OF_CHUNKS:
                raise BadChunk(data)
