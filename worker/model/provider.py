"""The connections to one provider, over the openai SDK.

The SDK speaks HTTP and knows the errors; its typed chunks are left aside, as one costs
ten times what ours does. Its retries are off: a retry is an event of the run, so the
stage decides on it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx2
import openai

from shared.errors import ModelError, ModelOutputTooLong, ModelRejected, ModelUnavailable
from shared.settings import Settings
from worker.model import faults
from worker.model.answer import AnswerReader
from worker.model.chunks import EVENT_MAX_BYTES, Chunk

log = logging.getLogger(__name__)

# A complete answer waits this long for what may still follow: usage, or [DONE].
_TAIL_S: Final = 5.0
# After [DONE] only the body's end is due. Who reads it can use the connection again.
_BODY_END_S: Final = 0.1
_CAUSE_MAX_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """One provider: where it is, and how much is borne from it."""

    base_url: str | None
    api_key: str
    connect_timeout_s: float
    stall_timeout_s: float
    output_max_bytes: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The provider of `OPENAI_BASE_URL` and `OPENAI_API_KEY`; without an address, OpenAI itself."""
        key = settings.openai_api_key
        return cls(
            base_url=settings.openai_base_url,
            api_key=key.get_secret_value() if key else "",
            connect_timeout_s=settings.model_connect_timeout_s,
            stall_timeout_s=settings.model_stall_timeout_s,
            output_max_bytes=settings.model_output_max_bytes,
        )


class Provider:
    """Streams answers. Safe to share among all runs of a process."""

    def __init__(self, options: ProviderOptions) -> None:
        self._options = options
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url,
            # The SDK insists on a key, and would look for one in the environment.
            api_key=options.api_key or "none",
            max_retries=0,
            timeout=httpx2.Timeout(options.stall_timeout_s, connect=options.connect_timeout_s),
        )

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Ask, and yield the chunks as they arrive. Closing it closes the connection.

        Args:
            body: a chat completion request's fields.

        Raises:
            ModelError: of the kind that `faults` says.
        """
        reader = AnswerReader(self._options.output_max_bytes)
        try:
            async with self._open(body) as response, aclosing(response.http_response.aiter_bytes()) as data:
                if "json" in response.headers.get("content-type", ""):
                    for chunk in reader.take_whole(await self._read_whole(data)):
                        yield chunk
                    return
                while piece := await _next(data, reader):
                    for chunk in reader.feed(piece):
                        yield chunk
                for chunk in reader.finish():
                    yield chunk
        except ModelError as exc:
            log.warning("the model's provider failed: %s: %s", exc, self._cause(exc))
            raise
        except (openai.OpenAIError, httpx2.HTTPError) as exc:
            # A connection that is cut after the last token has cost nothing.
            if not reader.is_complete:
                failure = self._failure(exc)
                log.warning("the model's provider failed: %s: %s", failure, self._cause(exc))
                raise failure from exc

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _open(self, body: dict[str, Any]) -> AbstractAsyncContextManager[openai.AsyncAPIResponse[Any]]:
        create = self._client.chat.completions.with_streaming_response.create
        headers = {} if self._options.api_key else {"Authorization": openai.Omit()}
        return create(stream=True, stream_options={"include_usage": True}, extra_headers=headers, **body)

    async def _read_whole(self, data: AsyncIterator[bytes]) -> bytes:
        pieces = []
        size = 0
        async for piece in data:
            pieces.append(piece)
            size += len(piece)
            if size > self._options.output_max_bytes + EVENT_MAX_BYTES:
                raise ModelOutputTooLong(f"the model's output is longer than {self._options.output_max_bytes} bytes")
        return b"".join(pieces)

    def _failure(self, exc: Exception) -> ModelError:
        if isinstance(exc, openai.APIStatusError):
            error = faults.parse_error(exc.body or "")
            return faults.from_status(exc.status_code, error, faults.parse_retry_after(exc.response.headers))
        cause = exc.__cause__ if isinstance(exc, openai.APIConnectionError) else exc
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            return ModelUnavailable("the model's provider cannot be reached")
        if isinstance(cause, httpx2.TimeoutException):
            return ModelUnavailable(f"the model's provider was silent for {self._options.stall_timeout_s:g} s")
        if isinstance(exc, openai.APIConnectionError | httpx2.HTTPError):
            return ModelUnavailable("the model's provider cut the connection")
        return ModelRejected("the model's provider could not be asked")

    def _cause(self, exc: BaseException) -> str:
        """What the log may say of a failure: everything but the key."""
        cause = exc.__cause__ or exc
        text = f"{type(cause).__name__}: {cause}"
        if self._options.api_key:
            text = text.replace(self._options.api_key, "***")
        return text[:_CAUSE_MAX_CHARS]


async def _next(data: AsyncGenerator[bytes, None] | AsyncIterator[bytes], reader: AnswerReader) -> bytes:
    """The body's next bytes; none at its end, and none where a complete answer is followed by silence."""
    if not reader.is_complete:
        return await anext(data, b"")
    try:
        async with asyncio.timeout(_BODY_END_S if reader.is_done else _TAIL_S):
            return await anext(data, b"")
    except TimeoutError:
        return b""
