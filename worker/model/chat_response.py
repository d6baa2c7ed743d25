"""Reads one streamed chat completion, from the bytes of a 200 response to chunks for the stage; sans-IO.

Combines the chunk decoder and the finish tracker, and enforces the limit on the model's output. Anything
wrong with the body becomes a `ModelError`, after the chunks that came before it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from stagebus.shared.errors import ModelOutputTooLong, ModelUnavailable
from stagebus.worker.model import provider_errors
from stagebus.worker.model.chat_chunks import BadChunk, Chunk, ChunkDecoder, EventTooLong
from stagebus.worker.model.finish import FinishTracker, choices

# Every chunk counts at least this much, so that an endless stream of empty chunks reaches the limit, too.
CHUNK_MIN_BYTES: Final = 32
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}", re.ASCII)


class ErrorChunk(Exception):
    """The provider sent an error in place of a chunk. Raised as the cause of a `ModelError`, for the log."""


def incomplete(expected: str, content_type: str, *, has_chunks: bool, is_empty: bool) -> ModelUnavailable:
    """Returns the error of an answer whose body ended before the answer did.

    Args:
        expected: what the body should have been.
        content_type: the response's media type, for the message if the body was no answer.
    """
    if has_chunks:
        return ModelUnavailable("the model's provider ended its answer too early")
    if is_empty:
        return ModelUnavailable("the model's provider sent an empty answer")
    media_type = _MEDIA_TYPE.match(content_type)
    kind = f": {media_type[0]}" if media_type else ""
    return ModelUnavailable(f"the model's provider sent something that is not {expected}{kind}")


class ChatResponseReader:
    """Takes the body of a 200 response and returns its chunks.

    Args:
        output_max_bytes: limit for the model's output, without the JSON around it.
    """

    def __init__(self, output_max_bytes: int) -> None:
        self._output_max_bytes = output_max_bytes
        self._output_bytes = 0
        self._has_bytes = False
        self._has_chunks = False
        self._has_final_usage = False
        self._decoder = ChunkDecoder()
        self._tracker = FinishTracker()

    @property
    def is_done(self) -> bool:
        """True after `[DONE]`."""
        return self._decoder.is_done

    @property
    def has_finish_reason(self) -> bool:
        """True after a finish reason or `[DONE]`. The answer is complete if the body ends here, and not if it is cut."""
        return self._decoder.is_done or self._tracker.finish_reason is not None

    @property
    def has_final_usage(self) -> bool:
        """True after a usage without choices that follows the finish reason."""
        return self._has_final_usage

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yields the chunks that these bytes complete.

        Raises:
            ModelError: the bytes are not a chunk, hold an error, or exceed the output limit.
        """
        self._has_bytes = True
        try:
            chunks = self._decoder.feed(data)
        except BadChunk as exc:
            raise ModelUnavailable("the model's provider sent something that is not a chat completion chunk") from exc
        except EventTooLong as exc:
            raise ModelOutputTooLong(f"the model's provider sent {exc}") from exc
        yield from self._checked(chunks)

    def finish(self, content_type: str = "") -> Iterator[Chunk]:
        """Yields what the end of the body completes: its last event, or a whole completion that was not streamed.

        Args:
            content_type: the response's media type, for the message if the body was no answer.

        Raises:
            ModelError: the answer is incomplete, empty or an error.
        """
        yield from self._checked(self._decoder.finish())
        if self.has_finish_reason and self._has_chunks:
            return
        is_empty = not self._has_bytes or self.is_done
        raise incomplete("a chat completion", content_type, has_chunks=self._has_chunks, is_empty=is_empty)

    def continuation(self, body: dict[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 - the interface
        """Returns None: no provider pauses an answer."""
        return None

    def _checked(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._tracker.observe(chunk)
            if self._tracker.error is not None:
                raise provider_errors.error_from_report(self._tracker.error) from ErrorChunk(self._tracker.error)
            self._output_bytes += max(self._size_of(chunk), CHUNK_MIN_BYTES)
            if self._output_bytes > self._output_max_bytes:
                raise ModelOutputTooLong(f"the model's output is longer than {self._output_max_bytes} bytes")
            if not chunk.get("choices"):
                has_usage = bool(chunk.get("usage") or chunk.get("x_groq"))
                if chunk.get("choices") is None and not has_usage:
                    continue  # a note of the server, such as a ping
                self._has_final_usage = has_usage and self._tracker.finish_reason is not None
            elif self._has_final_usage:
                self._has_final_usage = False
            self._has_chunks = True
            yield chunk

    def _size_of(self, chunk: Chunk) -> int:
        """Returns the bytes of model output in a chunk."""
        size = 0
        for choice in choices(chunk):
            delta = choice.get("delta")
            if delta is None:
                delta = self._message_as_delta(choice)
            if isinstance(delta, dict):
                for value in delta.values():
                    if isinstance(value, str):
                        size += len(value) if value.isascii() else len(value.encode())
                    elif value:
                        size += len(orjson.dumps(value))
        return size

    def _message_as_delta(self, choice: dict[str, Any]) -> object:
        """Turns a `message` in the first chunk into a `delta`. A later one only repeats the deltas before it."""
        message = choice.get("message")
        if isinstance(message, dict) and not self._has_chunks:
            del choice["message"]
            choice["delta"] = message
        return message
