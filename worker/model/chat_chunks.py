r"""A provider's event stream, from bytes to chat completion chunks; sans-IO.

    data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hel"}}]}

    : a comment that keeps the connection open

    event: error
    data: {"message":"overloaded"}

    data: [DONE]

    {"error":{"message":"a JSON text that stands there bare, on one line or on many"}}

Providers keep to the specification more or less; what they break without making the
stream ambiguous is taken as meant.
Spec: https://html.spec.whatwg.org/multipage/server-sent-events.html
Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
import re
from contextlib import suppress
from typing import Any, Final

import orjson

Chunk = dict[str, Any]

_SPACE: Final = re.compile(r"\s*")
_PYTHON: Final = json.JSONDecoder(parse_constant=lambda _: None)

EVENT_MAX_BYTES: Final = 4 * 2**20
_HALVES_MAX: Final = 100

_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = b"[DONE]"
_FIELD: Final = b"data:"
# A JSON text without a field's name: chunks a line each, or one whole completion or error.
_BARE: Final = (b"{", b"[")
# By this field llama.cpp sent its errors.
_ERROR_FIELD: Final = b"error:"
_ERROR_EVENT: Final = b"error"
# Events of these names, and of none, hold chunks; what others hold is not ours where it is no JSON.
_CHUNK_EVENTS: Final = (b"", b"message")


class BadChunk(ValueError):
    """An event whose data is no JSON object. The stream cannot be trusted from here on."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"no JSON object: {data[:200]!r}")


class EventTooLong(ValueError):
    """One event is longer than the decoder may hold."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event of more than {limit_bytes} bytes")


class ChunkDecoder:
    """Takes bytes as they come, cut anywhere, and gives the chunks that they complete."""

    def __init__(self, event_max_bytes: int = EVENT_MAX_BYTES) -> None:
        self.is_done = False
        self._event_max_bytes = event_max_bytes
        self._is_first_line = True
        self._ends_in_cr = False
        self._line: list[bytes] = []  # the parts of a line that has not ended
        self._line_bytes = 0
        self._data: list[bytes] = []  # the data lines of an event that has not ended
        self._data_bytes = 0
        self._event = b""
        self._bare: list[bytes] = []  # the lines of a bare JSON text that is more than one line
        self._bare_bytes = 0
        self._halves = _Halves()

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks that these bytes complete; nothing after `[DONE]`.

        Raises:
            BadChunk: an event is garbage.
            EventTooLong: an event is longer than `event_max_bytes`.
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
                self._line_bytes = 0
            for line in lines:
                self._take_line(line, chunks)
        if rest:
            self._line.append(rest)
            self._line_bytes += len(rest)
            if self._line_bytes + self._data_bytes > self._event_max_bytes:
                raise EventTooLong(self._event_max_bytes)
        return chunks

    def finish(self) -> list[Chunk]:
        """The chunk of an event that the body's end cut its blank line off; a broken one is dropped.

        Call it once, when the body has ended.
        """
        chunks: list[Chunk] = []
        # What is incomplete is dropped: whoever counts on it sees no end of the answer.
        with suppress(BadChunk):
            self._take_line(b"".join(self._line), chunks)
            self._take_line(b"", chunks)
        if self._bare and not self.is_done:
            with suppress(BadChunk):
                self._take_data(b"\n".join(self._bare), chunks)
        return chunks

    def _with_lf(self, data: bytes) -> bytes:
        """The bytes with every line end as LF, also where a CR LF came in two pieces."""
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
        elif self._bare or line.lstrip().startswith(_BARE):
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
                pass  # it may go on in the next line; how far shows at the body's end
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
            # Some servers end every event with one line end only, so that many look like one.
            if len(lines) == 1:
                raise
            for line in lines:
                self._take_data(line, chunks)

    def _take_data(self, data: bytes, chunks: list[Chunk]) -> None:
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            data = data.strip().removeprefix(_FIELD).lstrip()  # some proxies wrap what is wrapped
            if not data or self.is_done:
                return
            if data == _DONE:
                self.is_done = True
                return
            self._take_lenient(data, chunks)
            return
        if isinstance(chunk, dict):
            chunks.append(chunk if self._event != _ERROR_EVENT or "error" in chunk else {"error": chunk})
        else:
            self._take_other(chunk, data, chunks)

    def _take_lenient(self, data: bytes, chunks: list[Chunk]) -> None:
        try:
            for chunk in _loads_leniently(data, self._halves):
                self._take_other(chunk, data, chunks)
        except BadChunk:
            if self._event in _CHUNK_EVENTS:
                raise
            if self._event == _ERROR_EVENT:
                chunks.append({"error": data.decode(errors="replace")})

    def _take_other(self, value: Any, data: bytes, chunks: list[Chunk]) -> None:
        """What is no chunk by itself: nothing, a list of chunks, or the words of an error."""
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if self._event == _ERROR_EVENT and not (isinstance(item, dict) and "error" in item):
                chunks.append({"error": item})
            elif isinstance(item, dict):
                chunks.append(item)
            else:
                raise BadChunk(data)


class _Halves:
    """Halves of surrogate pairs that a server cut in two.

    The second comes at the beginning of the same field of a later chunk, and the first waits for
    it there. One whose other half never comes is no character.
    """

    def __init__(self) -> None:
        self._half_by_path: dict[tuple[str | int, ...], str] = {}

    def join(self, value: Any, path: tuple[str | int, ...] = ()) -> Any:
        """The value with halves that fit put together."""
        if isinstance(value, dict):
            return {name: self.join(item, (*path, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self.join(item, (*path, place)) for place, item in enumerate(value)]
        if not isinstance(value, str) or not value:
            return value
        if "\udc00" <= value[0] <= "\udfff":
            value = self._half_by_path.pop(path, "") + value
        if "\ud800" <= value[-1] <= "\udbff" and len(self._half_by_path) < _HALVES_MAX:
            self._half_by_path[path] = value[-1]
            return value[:-1]
        return value


def _loads_leniently(data: bytes, halves: _Halves) -> list[Any]:
    r"""JSON as Python's own parser takes it: with NaN, with half of a surrogate pair, and one text after the other.

    All occur: NaN among logprobs, `"\ud83d"` where a server cut an emoji between two
    tokens, two chunks on one line. Nobody could encode NaN again, nor a half that
    nothing follows, so they become null and nothing or U+FFFD.
    """
    try:
        text = data.decode()
        values: list[Any] = []
        end = 0
        while end < len(text):
            value, end = _PYTHON.raw_decode(text, end)
            values.append(halves.join(value))
            end = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # it matches nothing, too
        text = json.dumps(values, ensure_ascii=False)
        loaded = orjson.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        raise BadChunk(data) from None
    return list(loaded)
