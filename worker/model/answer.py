"""One answer as it is read: from the body's bytes to chunks that may be passed on; sans-IO.

Joins the decoder and the ending, and holds the limit on a model's output. Whatever is
wrong with the body leaves here as a `ModelError`, after the chunks before it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from shared.errors import ModelOutputTooLong, ModelUnavailable
from worker.model import faults
from worker.model.chunks import BadChunk, Chunk, ChunkDecoder, EventTooLong
from worker.model.ending import Ending, choices

# What a chunk counts as, however little it says: empty ones without end are an output, too.
CHUNK_MIN_BYTES: Final = 32


class ErrorChunk(Exception):
    """A provider's error in the place of a chunk: the cause, for the log."""


class AnswerReader:
    """Takes a 200's body and gives its chunks.

    Args:
        output_max_bytes: of what the model says, without the JSON around it.
    """

    def __init__(self, output_max_bytes: int) -> None:
        self._output_max_bytes = output_max_bytes
        self._output_bytes = 0
        self._decoder = ChunkDecoder()
        self._ending = Ending()

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
        try:
            chunks = self._decoder.feed(data)
        except BadChunk as exc:
            raise ModelUnavailable("the model's provider sent something that is no chat completion chunk") from exc
        except EventTooLong as exc:
            raise self._too_long() from exc
        yield from self._checked(chunks)

    def finish(self) -> Iterator[Chunk]:
        """Yield what the body's end completes.

        Raises:
            ModelUnavailable: the body ended before the answer did.
        """
        yield from self._checked(self._decoder.finish())
        if not self.is_complete:
            raise ModelUnavailable("the model's provider broke off in the middle of its answer")

    def take_whole(self, body: bytes) -> Iterator[Chunk]:
        """Yield a chat completion that was not streamed, as one chunk: some servers cannot stream.

        Raises:
            ModelError: it is no chat completion.
        """
        try:
            completion = orjson.loads(body)
        except orjson.JSONDecodeError:
            completion = None
        if not isinstance(completion, dict):
            raise ModelUnavailable("the model's provider sent something that is no chat completion")
        for choice in choices(completion):
            if "message" in choice:
                choice["delta"] = choice.pop("message")
        yield from self._checked([completion])
        yield from self.finish()

    def _checked(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._ending.see(chunk)
            if self._ending.error is not None:
                raise faults.from_error(self._ending.error) from ErrorChunk(self._ending.error)
            self._output_bytes += _output_bytes(chunk)
            if self._output_bytes > self._output_max_bytes:
                raise self._too_long()
            yield chunk

    def _too_long(self) -> ModelOutputTooLong:
        return ModelOutputTooLong(f"the model's output is longer than {self._output_max_bytes} bytes")


def _output_bytes(chunk: Chunk) -> int:
    size = 0
    for choice in choices(chunk):
        if isinstance(delta := choice.get("delta"), dict):
            for value in delta.values():
                if isinstance(value, str):
                    size += len(value) if value.isascii() else len(value.encode())
                elif value:
                    size += len(orjson.dumps(value))
    return max(size, CHUNK_MIN_BYTES)
