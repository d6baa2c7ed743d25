"""HTTP clients for tools with a guard against SSRF: each connects only to its origins, and not to private addresses.

The address is checked after the name was resolved, and the connection goes to the checked address, so DNS rebinding has
no effect. Redirects pass the same two checks. TLS still verifies the name, not the address.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

import httpcore2
import httpx2

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.cookies import RefusingCookieJar
from stagebus.shared.runtime.net import AddressPolicy, normal_host
from stagebus.worker.tools.host_resolver import HostResolver

logger = logging.getLogger(__name__)

REDIRECTS_MAX: Final = 3
CONNECT_TIMEOUT_S: Final = 10.0
READ_MAX_BYTES: Final = 8 * 2**10
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_EVENT_STREAM: Final = "text/event-stream"
_EMPTY_LINE: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_EMPTY_LINE_BYTES: Final = 4

# Returns the addresses of a host; raises OSError if there are none.
Resolve = Callable[[str, int], Awaitable[list[str]]]


class EgressRefused(httpx2.ConnectError):
    """The target of a request is not allowed. The message contains no address, so a model may read it."""


class ResponseTooLong(httpx2.ReadError):
    """A response is longer than the client's limit, or is compressed, so that its length is unknown."""


class HttpOrigin(NamedTuple):
    """A scheme, a host and a port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: httpx2.URL | str) -> Self:
        """Returns the origin of a URL.

        Raises:
            ValueError: it is not an http or https URL.
        """
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as exc:
            raise ValueError(f"not a URL: {exc}") from None
        if parsed.scheme not in _DEFAULT_PORTS or not parsed.host:
            raise ValueError("a URL must begin with http:// or https:// and contain a host")
        host = normal_host(parsed.raw_host.decode())
        return cls(parsed.scheme, host, parsed.port or _DEFAULT_PORTS[parsed.scheme])

    def upgraded(self) -> "HttpOrigin":
        """Returns the https origin of an http origin with the default port, the target of a usual redirect."""
        return HttpOrigin("https", self.host, 443) if self[::2] == ("http", 80) else self


class Egress:
    """Creates the HTTP clients of tools."""

    def __init__(self, policy: AddressPolicy, response_max_bytes: int, resolve: Resolve | None = None) -> None:
        self._policy = policy
        self.response_max_bytes = response_max_bytes
        self._resolve = resolve or HostResolver().resolve
        self._tls: ssl.SSLContext | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Egress":
        """Creates it with the targets that the operator allows."""
        return cls(AddressPolicy(settings.egress_allow), settings.egress_response_max_bytes)

    def client(
        self,
        urls: Iterable[str],
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        event_streams: bool = False,
        takes_compressed: bool = False,
        wrap: Callable[[httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport] = lambda transport: transport,
    ) -> httpx2.AsyncClient:
        """Creates a client for the origins of `urls` only. It ignores proxies of the environment.

        Args:
            timeout_s: limit for each read and write; the caller limits the whole request.
            event_streams: event streams may have any length, and responses may take any time; the limit of length
                applies to each event, and the limit of time to writes.
            takes_compressed: responses may be compressed, since the caller reads only their raw bytes.
            wrap: returns the transport that adapts requests and responses.

        Raises:
            ValueError: one of `urls` is not an http or https URL.
        """
        origins = {HttpOrigin.of(url) for url in urls}
        origins |= {origin.upgraded() for origin in origins}
        transport = _GuardedTransport(
            frozenset(origins),
            _GuardedBackend(self._policy, self._resolve),
            self._ssl_context(origins),
            self.response_max_bytes,
            event_streams=event_streams,
            takes_compressed=takes_compressed,
        )
        return httpx2.AsyncClient(
            transport=wrap(transport),
            cookies=RefusingCookieJar(),
            # The length of compressed content is unknown.
            headers={**(headers or {}), "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(
                timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), read=None if event_streams else timeout_s
            ),
            follow_redirects=True,
            max_redirects=REDIRECTS_MAX,
        )

    def _ssl_context(self, origins: Iterable[HttpOrigin]) -> ssl.SSLContext:
        """Returns one context for all clients, since loading the CA certificates takes 0.2 s; an empty one if all use http."""
        if all(origin.scheme == "http" for origin in origins):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls = self._tls or httpx2.create_ssl_context()
        return self._tls


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens the connections of the pool: resolves the host, checks the addresses and connects to one of them."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host, port)
                # Each address gets its share of the time, so that an unresponsive one leaves time for the others.
                share_s = timeout and timeout / max(1, len(addresses))
                return await self._connect(addresses, port, share_s, local_address, socket_options)
        except TimeoutError as exc:
            raise httpcore2.ConnectTimeout(f"no connection to {host} within {timeout:g} s") from exc

    async def _connect(
        self,
        addresses: list[str],
        port: int,
        share_s: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for address in addresses:
            try:
                return _SmallReads(await self._inner.connect_tcp(address, port, share_s, local_address, socket_options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failure = exc
        raise failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise httpcore2.ConnectError(f"{host} cannot be resolved") from exc
        refused = [address for address in addresses if not self._policy.permits(host, port, address)]
        if refused:
            # One is enough: a mix of private and public addresses suggests an attack.
            logger.warning(
                "%s:%d has the address %s, which STAGEBUS_EGRESS_ALLOW does not allow", host, port, ", ".join(refused)
            )
            raise EgressRefused(f"{host} has no public address; STAGEBUS_EGRESS_ALLOW can allow it")
        return addresses


class _SmallReads(httpcore2.AsyncNetworkStream):
    """A connection that is read in small parts.

    h11 parses what a read has brought at once: 64 KiB of interim responses, or of chunks of one byte, hold the event loop
    for 100 ms and more.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's signature
        return await self._stream.read(min(max_bytes, READ_MAX_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        return _SmallReads(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    """Sends requests to its origins only, and limits the length of responses."""

    def __init__(
        self,
        origins: frozenset[HttpOrigin],
        backend: httpcore2.AsyncNetworkBackend,
        ssl_context: ssl.SSLContext,
        response_max_bytes: int,
        *,
        event_streams: bool,
        takes_compressed: bool,
    ) -> None:
        super().__init__(verify=ssl_context)
        # httpx2 2.16 has no parameter for the network backend of its pool.
        self._pool = httpcore2.AsyncConnectionPool(ssl_context=ssl_context, network_backend=backend)
        self._origins = origins
        self._response_max_bytes = response_max_bytes
        self._event_streams = event_streams
        self._takes_compressed = takes_compressed

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._is_allowed(request.url):
            raise EgressRefused(f"{request.url.host} is not among the hosts of this tool")
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity" and not self._takes_compressed:
            await response.aclose()
            raise ResponseTooLong("the response is compressed, although this was not requested")
        is_events = self._event_streams and response.headers.get("Content-Type", "").startswith(_EVENT_STREAM)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _LimitedStream(response.stream, self._response_max_bytes, is_events=is_events)
        return response

    def _is_allowed(self, url: httpx2.URL) -> bool:
        try:
            return HttpOrigin.of(url) in self._origins
        except ValueError:
            return False


class _LimitedStream(httpx2.AsyncByteStream):
    """A response body that raises an error if it, or one of its events, is too long."""

    def __init__(self, body: httpx2.AsyncByteStream, max_bytes: int, *, is_events: bool) -> None:
        self._body = body
        self._max_bytes = max_bytes
        self._is_events = is_events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        tail = b""
        async for part in self._body:
            length += len(part)
            if self._is_events:
                # An event ends with an empty line, which may be split across two parts.
                *ended, rest = _EMPTY_LINE.split(tail + part)
                length = len(rest) if ended else length
                tail = rest[1 - _EMPTY_LINE_BYTES :]
            if length > self._max_bytes:
                subject = "an event" if self._is_events else "the response"
                raise ResponseTooLong(f"{subject} is longer than {self._max_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()
