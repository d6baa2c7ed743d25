"""One answer as it is read: from the body's bytes to chunks that may be passed on; sans-IO.

Joins the decoder and the ending, and holds the limit on a model's output. Whatever is
wrong with the body leaves here as a `ModelError`, after the chunks before it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from stagebus.shared.errors import ModelOutputTooLong, ModelUnavailable
from stagebus.worker.model import provider_errors
from stagebus.worker.model.chat_chunks import BadChunk, Chunk, ChunkDecoder, EventTooLong
from stagebus.worker.model.finish import FinishTracker, choices

# What a chunk counts as, however little it says: empty ones without end are an output, too.
CHUNK_MIN_BYTES: Final = 32
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}", re.ASCII)


class ErrorChunk(Exception):
    """A provider's error in the place of a chunk: the cause, for the log."""


class ChatResponseReader:
    """Takes a 200's body and gives its chunks.

    Args:
        output_max_bytes: of what the model says, without the JSON around it.
    """

    def __init__(self, output_max_bytes: int) -> None:
        self._output_max_bytes = output_max_bytes
        self._output_bytes = 0
        self._has_bytes = False
        self._has_chunks = False
        self._decoder = ChunkDecoder()
        self._ending = FinishTracker()

    @property
    def is_done(self) -> bool:
        """Whether `[DONE]` was read."""
        return self._decoder.is_done

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the answer is missing, whatever becomes of the connection."""
        return self._decoder.is_done or self._ending.finish_reason is not None

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yield the chunks that these bytes complete.

        Raises:
            ModelError: garbage, an error in a chunk's place, or too much output.
        """
        self._has_bytes = True
        try:
            chunks = self._decoder.feed(data)
        except BadChunk as exc:
            raise ModelUnavailable("the model's provider sent something that is no chat completion chunk") from exc
        except EventTooLong as exc:
            raise ModelOutputTooLong(f"the model's provider sent {exc}") from exc
        yield from self._checked(chunks)

    def finish(self, content_type: str = "") -> Iterator[Chunk]:
        """Yield what the body's end completes: its last event, or all of a completion that was not streamed.

        Args:
            content_type: what the provider called the body; told where it was no answer.

        Raises:
            ModelError: the body ended before the answer did, or held none, or an error.
        """
        yield from self._checked(self._decoder.finish())
        if self.is_complete and self._has_chunks:
            return
        if self._has_chunks:
            raise ModelUnavailable("the model's provider broke off in the middle of its answer")
        if not self._has_bytes or self.is_done:
            raise ModelUnavailable("the model's provider sent an empty answer")
        kind = _MEDIA_TYPE.match(content_type)
        raise ModelUnavailable(
            "the model's provider sent something that is no chat completion" + (f": {kind[0]}" if kind else "")
        )

    def _checked(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._ending.see(chunk)
            if self._ending.error is not None:
                raise provider_errors.error_from_report(self._ending.error) from ErrorChunk(self._ending.error)
            self._output_bytes += max(self._size_of(chunk), CHUNK_MIN_BYTES)
            if self._output_bytes > self._output_max_bytes:
                raise ModelOutputTooLong(f"the model's output is longer than {self._output_max_bytes} bytes")
            self._has_chunks = True
            yield chunk

    def _size_of(self, chunk: Chunk) -> int:
        """How many bytes the model says in it."""
        size = 0
        for choice in choices(chunk):
            said = choice.get("delta")
            if said is None:
                said = self._message_in(choice)
            if isinstance(said, dict):
                for value in said.values():
                    if isinstance(value, str):
                        size += len(value) if value.isascii() else len(value.encode())
                    elif value:
                        size += len(orjson.dumps(value))
        return size

    def _message_in(self, choice: dict[str, Any]) -> object:
        """A message in a delta's place. The first chunk's becomes one; a later one only says again what deltas said."""
        message = choice.get("message")
        if isinstance(message, dict) and not self._has_chunks:
            del choice["message"]
            choice["delta"] = message
        return message
