"""The connections to one provider, over the openai SDK.

The SDK makes the requests and knows the errors; `transport` carries them. Its typed chunks
are left aside, as one costs ten times what ours does. Its retries are off: a retry is an
event of the run, so the stage decides on it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import httpx2
import openai

from stagebus.shared.config.provider_schema import ProviderEntry
from stagebus.shared.config.providers import DEFAULT_PROVIDER
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import KeyMissing, ModelError, ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.shared.observability import trace
from stagebus.worker.model import provider_errors
from stagebus.worker.model.chat_chunks import Chunk
from stagebus.worker.model.chat_response import ChatResponseReader
from stagebus.worker.model.transport import AiohttpClient

logger = logging.getLogger(__name__)

# A complete answer waits this long for what may still follow: usage, or [DONE].
_TAIL_S: Final = 5.0
# After [DONE] only the body's end is due. Who reads it can use the connection again.
_BODY_END_S: Final = 0.1
_CAUSE_MAX_CHARS: Final = 500
# The SDK's own, but that an idle connection is kept for longer than 5 s: TLS anew costs a run three round trips.
LIMITS: Final = httpx2.Limits(
    max_connections=openai.DEFAULT_CONNECTION_LIMITS.max_connections,
    max_keepalive_connections=openai.DEFAULT_CONNECTION_LIMITS.max_keepalive_connections,
    keepalive_expiry=30.0,
)
AUTHORIZATION: Final = "Authorization"


class Provider:
    """Streams answers. Safe to share among all runs of a process."""

    def __init__(self, name: str, entry: ProviderEntry, settings: Settings) -> None:
        self._name = name
        self._entry = entry
        self._output_max_bytes = settings.model_output_max_bytes
        self._stall_timeout_s = entry.stall_timeout_s or settings.model_stall_timeout_s
        connect_timeout_s = entry.connect_timeout_s or settings.model_connect_timeout_s
        timeout = httpx2.Timeout(self._stall_timeout_s, connect=connect_timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=entry.base_url,
            # The SDK insists on a key, and would look for one in the environment; ours is a header of each request.
            api_key="none",
            max_retries=0,
            timeout=timeout,
            # A redirect would carry the conversation, and any key in a header of its own, to wherever it says.
            http_client=AiohttpClient(timeout=timeout, follow_redirects=False, limits=LIMITS),
        )
        if name != DEFAULT_PROVIDER:
            # Out of OPENAI_ORG_ID and OPENAI_PROJECT_ID: nobody's business but OpenAI's.
            self._client.organization = self._client.project = None
        self._create = self._client.chat.completions.with_streaming_response.create  # imports it: 40 ms
        # What was sent last of what must not be shown.
        self._secrets: set[str] = set()

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Ask, and yield the chunks as they arrive. Closing it closes the connection.

        Args:
            body: a chat completion request's fields.

        Raises:
            ModelError: of the kind that `faults` says.
        """
        reader = ChatResponseReader(self._output_max_bytes)
        try:
            async with self._open(body) as response:
                read = _reader_of(response.http_response)
                while piece := await (_rest(read, reader) if reader.is_complete else read()):
                    for chunk in reader.feed(piece):
                        yield chunk
                for chunk in reader.finish(response.headers.get("content-type", "")):
                    yield chunk
        except ModelError as exc:
            logger.warning("provider %s failed: %s: %s", self._name, exc, self._cause(exc))
            raise
        except (openai.OpenAIError, httpx2.HTTPError) as exc:
            # A connection that is cut after the last token has cost nothing.
            if not reader.is_complete:
                failure = self._failure(exc)
                logger.warning("provider %s failed: %s: %s", self._name, failure, self._cause(exc))
                raise failure from exc

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _open(self, body: dict[str, Any]) -> AbstractAsyncContextManager[openai.AsyncAPIResponse[Any]]:
        return self._create(
            model=body["model"],
            messages=(),
            stream=True,
            # Past the SDK's own parameters, which know what OpenAI takes and nothing of others, and which look at each
            # part of each message by its type, and hold the event loop meanwhile: 350 ms for a thousand messages (openai 3.54).
            extra_body={name: value for name, value in body.items() if name not in ("model", "stream")},
            **self._secret_parts(),
        )

    def _secret_parts(self) -> dict[str, Any]:
        """The headers and query parameters of a request, out of the file, the environment or other files.

        Raises:
            ModelUnauthorized: one of them is missing there.
        """
        entry = self._entry
        try:
            headers: dict[str, Any] = {name: secret.read() for name, secret in entry.headers.items()}
            query = {name: secret.read() for name, secret in entry.query.items()}
            key = entry.key.read() if entry.key is not None else ""
        except KeyMissing as exc:
            raise ModelUnauthorized("the operator's key for the model's provider is missing") from exc
        self._secrets = {key, *headers.values(), *query.values()} - {""}
        if key and entry.auth_header.lower() == AUTHORIZATION.lower():
            headers[AUTHORIZATION] = f"Bearer {key}"
        elif key:
            headers[entry.auth_header] = key
        if AUTHORIZATION.lower() not in map(str.lower, headers):
            headers[AUTHORIZATION] = openai.Omit()
        return {"extra_headers": {**trace.current().headers(), **headers}, "extra_query": query}

    def _failure(self, exc: Exception) -> ModelError:
        if isinstance(exc, openai.APIStatusError):
            error = provider_errors.parse_error(exc.body or "")
            return provider_errors.error_from_status(
                exc.status_code, error, provider_errors.parse_retry_after(exc.response.headers)
            )
        cause = exc.__cause__ if isinstance(exc, openai.APIConnectionError) else exc
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            return ModelUnavailable("the model's provider cannot be reached")
        if isinstance(cause, httpx2.TimeoutException):
            return ModelUnavailable(f"the model's provider was silent for {self._stall_timeout_s:g} s")
        if isinstance(exc, openai.APIConnectionError | httpx2.HTTPError):
            return ModelUnavailable("the model's provider cut the connection")
        return ModelRejected("the model's provider could not be asked")

    def _cause(self, exc: BaseException) -> str:
        """What the log may say of a failure: everything but the key and what is kept like one."""
        cause = exc.__cause__ or exc
        text = f"{type(cause).__name__}: {cause}"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_CAUSE_MAX_CHARS]


def _reader_of(response: httpx2.Response) -> Callable[[], Awaitable[bytes]]:
    """What reads the body's next bytes; none at its end."""
    if "read" in response.extensions and "content-encoding" not in response.headers:
        read: Callable[[], Awaitable[bytes]] = response.extensions["read"]
        return read  # past httpx's decoders: five generators around each piece
    decoded = response.aiter_bytes()
    return lambda: anext(decoded, b"")


async def _rest(read: Callable[[], Awaitable[bytes]], answer: ChatResponseReader) -> bytes:
    """What follows a complete answer; none at the body's end, and none where there is silence."""
    try:
        async with asyncio.timeout(_BODY_END_S if answer.is_done else _TAIL_S):
            return await read()
    except TimeoutError:
        return b""
