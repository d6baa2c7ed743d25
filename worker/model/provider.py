"""One provider's HTTP client, built on the openai SDK.

The SDK sends the requests of every API (see `language`) and maps the errors, and `transport` carries them. The SDK's
typed chunks are not used, since one costs ten times as much CPU as a plain dictionary. The SDK's retries are off: a
retry is an event of the run, so the stage decides on it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx2
import openai
import orjson

from stagebus.shared.config.provider_schema import ProviderEntry
from stagebus.shared.config.providers import DEFAULT_PROVIDER, ModelRoute
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import KeyMissing, ModelError, ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.shared.observability import trace
from stagebus.shared.observability.redaction import redact
from stagebus.shared.runtime.cookies import RefusingCookieJar
from stagebus.shared.runtime.exact_json import is_shallow
from stagebus.shared.runtime.json_text import compact_json
from stagebus.worker.model import provider_errors
from stagebus.worker.model.chat_chunks import Chunk
from stagebus.worker.model.compat.error_shapes import parse_error
from stagebus.worker.model.items_back import has_items, without_items
from stagebus.worker.model.language import Language, ResponseReader, language_of
from stagebus.worker.model.learned_requests import LearnedRequests, refuses_items
from stagebus.worker.model.transport import AiohttpClient

logger = logging.getLogger(__name__)

# After the finish reason and the usage, only [DONE] follows. Some servers send neither it nor the end of the body.
# After a finish reason alone, content may still follow, so that the wait there is the one for any other chunk.
_DONE_WAIT_S: Final = 5.0
# After [DONE] only the end of the body follows. Once it is read, the connection can be reused.
_BODY_END_WAIT_S: Final = 0.1
# What follows [DONE] is not read to its end if it comes in more parts.
_READS_AFTER_END_MAX: Final = 8
_CAUSE_MAX_CHARS: Final = 500
# The SDK's limits, but idle connections stay open longer than 5 s: a new TLS connection costs a run three round trips.
LIMITS: Final = httpx2.Limits(
    max_connections=openai.DEFAULT_CONNECTION_LIMITS.max_connections,
    max_keepalive_connections=openai.DEFAULT_CONNECTION_LIMITS.max_keepalive_connections,
    keepalive_expiry=30.0,
)
AUTHORIZATION: Final = "Authorization"


class Provider:
    """Streams answers from one provider. All runs of a process share it."""

    def __init__(self, name: str, entry: ProviderEntry, settings: Settings) -> None:
        self._name = name
        self._entry = entry
        self._output_max_bytes = settings.model_output_max_bytes
        self._stall_timeout_s = entry.stall_timeout_s or settings.model_stall_timeout_s
        connect_timeout_s = entry.connect_timeout_s or settings.model_connect_timeout_s
        timeout = httpx2.Timeout(self._stall_timeout_s, connect=connect_timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=entry.base_url,
            # The SDK requires a key and would take one from the environment. Ours is a header of each request.
            api_key="none",
            max_retries=0,
            timeout=timeout,
            # A redirect could send the conversation, and a key in a custom header, to any other host.
            http_client=AiohttpClient(
                timeout=timeout, follow_redirects=False, limits=LIMITS, cookies=RefusingCookieJar()
            ),
        )
        if name != DEFAULT_PROVIDER or entry.api == "messages":
            # The SDK reads OPENAI_ORG_ID and OPENAI_PROJECT_ID. Other providers must not see them.
            self._client.organization = self._client.project = None
        self._learned = LearnedRequests()

    async def stream(self, fields: Mapping[str, Any], route: ModelRoute) -> AsyncGenerator[Chunk, None]:
        """Sends a request and yields the answer's chunks as they arrive. Closing it closes the connection.

        Args:
            fields: the fields of a chat completion request; those that are None are not sent.
            route: the model to ask.

        Raises:
            ModelError: a subclass that says whether a retry makes sense; see `provider_errors`.
        """
        try:
            language, body, response = await self._ask(fields, route)
            reader = language.reader(self._output_max_bytes)
            while True:
                try:
                    read = _body_reader(response)
                    reads_after_end = 0
                    while data := await (_read_trailer(read, reader) if reader.has_finish_reason else read()):
                        for chunk in reader.feed(data):
                            yield chunk
                        reads_after_end += reader.is_done
                        if reads_after_end > _READS_AFTER_END_MAX:
                            break
                    for chunk in reader.finish(response.headers.get("content-type", "")):
                        yield chunk
                finally:
                    await response.aclose()
                if (continued := reader.continuation(body)) is None:
                    return
                body, response = continued, await self._post(language, continued, route)
        except ModelError as exc:
            logger.warning("provider %s failed: %s: %s", self._name, exc, _cause_of(exc))
            raise
        except (openai.OpenAIError, httpx2.HTTPError) as exc:
            failure = self._to_model_error(exc)
            logger.warning("provider %s failed: %s: %s", self._name, failure, _cause_of(exc))
            raise failure from exc

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def _ask(
        self, fields: Mapping[str, Any], route: ModelRoute
    ) -> tuple[Language, dict[str, Any], httpx2.Response]:
        """Sends the request; sends another one if the refusal says which one the model accepts."""
        while True:
            language = language_of(self._learned.api_of(route))
            body = self._learned.adapt(route, language.write(fields, route))
            try:
                return language, body, await self._post(language, body, route)
            except openai.APIStatusError as exc:
                error = parse_error(_error_body(exc))
                if refuses_items(exc.status_code, error) and has_items(fields):
                    fields = without_items(fields)
                elif not self._learned.learn(route, exc.status_code, error):
                    raise
                logger.warning(
                    "provider %s refused a request for %s and is asked again: %s",
                    self._name, route.model_id, _cause_of(exc),
                )  # fmt: skip

    async def _post(self, language: Language, body: dict[str, Any], route: ModelRoute) -> httpx2.Response:
        """Sends a request and waits for the head of the response; its body is not read.

        Not by the SDK's typed methods: they know only OpenAI's fields, and they convert every part of every message
        by its type. A thousand messages block the event loop for 350 ms (openai 3.54). Nor is the body encoded by it.
        """
        return await self._client.post(
            self._path(language, route),
            cast_to=httpx2.Response,
            content=_encode(body),
            options=self._secret_options(language),
            stream=True,
            stream_cls=None,
        )

    def _path(self, language: Language, route: ModelRoute) -> str:
        """Returns the path to append. A client may choose the model's id, so it must not lead to another address."""
        if self._entry.path is None:
            return language.path_after(self._entry.base_url)
        if not route.model_id.strip("."):
            raise ModelRejected("the model's provider does not serve this model")
        return self._entry.path.replace("{model}", quote(route.model_id, safe="@:"))

    def _secret_options(self, language: Language) -> openai.RequestOptions:
        """Reads the headers and query parameters of a request, whose values may be in the environment or in files.

        Raises:
            ModelUnauthorized: one of them is missing.
        """
        entry = self._entry
        try:
            headers: dict[str, Any] = {name: secret.read() for name, secret in entry.headers.items()}
            query = {name: secret.read() for name, secret in entry.query.items()}
            key = entry.key.read() if entry.key is not None else ""
        except KeyMissing as exc:
            raise ModelUnauthorized("the operator's key for the model's provider is missing") from exc
        auth_header = entry.auth_header or language.auth_header
        if key and auth_header.lower() == AUTHORIZATION.lower():
            headers[AUTHORIZATION] = f"Bearer {key}"
        elif key:
            headers[auth_header] = key
        stated = set(map(str.lower, headers))
        headers |= {name: value for name, value in language.headers.items() if name not in stated}
        if AUTHORIZATION.lower() not in stated:
            headers[AUTHORIZATION] = openai.Omit()
        return {"headers": {**trace.current().headers(), **headers}, "params": query}

    def _to_model_error(self, exc: Exception) -> ModelError:
        if isinstance(exc, openai.APIStatusError):
            return provider_errors.error_from_status(
                exc.status_code,
                parse_error(_error_body(exc)),
                provider_errors.parse_retry_after(exc.response.headers),
                provider_errors.parse_should_retry(exc.response.headers),
            )
        cause = exc.__cause__ if isinstance(exc, openai.APIConnectionError) else exc
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.UnsupportedProtocol):
            return ModelUnavailable("the model's provider cannot be reached")
        if isinstance(cause, httpx2.TimeoutException):
            return ModelUnavailable(f"the model's provider was silent for {self._stall_timeout_s:g} s")
        if isinstance(exc, openai.APIConnectionError | httpx2.HTTPError):
            return ModelUnavailable("the model's provider cut the connection")
        return ModelRejected("the model's provider could not be asked")


def _cause_of(exc: BaseException) -> str:
    """Returns a failure's cause for the log. Masks secrets here already, so that a cut leaves no part of one."""
    cause = exc.__cause__ or exc
    return redact(f"{type(cause).__name__}: {cause}")[:_CAUSE_MAX_CHARS]


def _error_body(exc: openai.APIStatusError) -> Any:
    """Returns the body of an error, as JSON if it is JSON, whatever its content type."""
    try:
        body = orjson.loads(exc.response.content) or ""
        return body if is_shallow(body) else "its error is nested too deeply"
    except (orjson.JSONDecodeError, httpx2.ResponseNotRead):
        return exc.body or ""


def _body_reader(response: httpx2.Response) -> Callable[[], Awaitable[bytes]]:
    """Returns the function that reads the body's next bytes. It returns no bytes at the end."""
    if "read" in response.extensions and "content-encoding" not in response.headers:
        read: Callable[[], Awaitable[bytes]] = response.extensions["read"]
        return read  # bypasses httpx's decoders, which are five nested generators for each read
    decoded = response.aiter_bytes()
    return lambda: anext(decoded, b"")


def _encode(body: Mapping[str, Any]) -> bytes:
    """Encodes a request's body.

    The SDK's encoder takes 70 ms for the 35,000 short messages that a history may have, orjson 5 ms. orjson refuses
    integers of more than 64 bits.
    """
    try:
        return orjson.dumps(body)
    except TypeError:
        return compact_json(body).encode()


async def _read_trailer(read: Callable[[], Awaitable[bytes]], answer: ResponseReader) -> bytes:
    """Reads what follows a finish reason. Returns no bytes at the end of the body or after a time-out."""
    wait_s = _BODY_END_WAIT_S if answer.is_done else _DONE_WAIT_S if answer.has_final_usage else None
    try:
        async with asyncio.timeout(wait_s):
            return await read()
    except (TimeoutError, httpx2.TimeoutException):
        return b""
    except httpx2.HTTPError:
        # A finish reason is no proof of the end: some servers send one with every chunk. The last event is one.
        if not answer.is_done:
            raise
        return b""
