"""An HTTP transport for the openai SDK that uses aiohttp instead of httpcore.

A model's answer comes in small pieces, so nearly every token is a read of its own. For each read httpcore takes
130 us more CPU than aiohttp (h11 and anyio, in Python; openai 3.54, 1,000 tokens/s in total), which is more than
everything else that a worker does for a token. The SDK has such a transport, too, `DefaultAioHttpClient`.
This one also reports errors exactly, limits the time for sending a request, accepts long headers, keeps keys out
of exception texts, and lets the body be read without httpx's decoders.
"""

import asyncio
import io
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import httpx2
from aiohttp.http_exceptions import HttpProcessingError

# Passes of the event loop before a request, so that aiohttp notices if a server has closed an idle connection.
_LOOP_PASSES: Final = 3
# A longer body is sent in parts, for which aiohttp needs a file.
_ONE_PART_MAX_BYTES: Final = 1 << 20
# A closed connection with unsent data is dropped after this time even if the server accepts no bytes.
_UNSENT_TIMEOUT_MS: Final = 30_000
# Some proxies send longer policies or cookies than aiohttp's default of 8 KiB.
_HEADER_MAX_BYTES: Final = 64 * 1024
# An error's body is read up to this length, compressed and not. The rest is dropped.
ERROR_BODY_MAX_BYTES: Final = 64 * 1024
# Compressed bytes expand up to a thousand times, so that few are decoded at once.
_COMPRESSED_PART_BYTES: Final = 4096
_FIRST_ERROR_STATUS: Final = 300
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32
_FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError)


class AiohttpClient(httpx2.AsyncClient):
    """httpx's client, including proxies from the environment, with the transport of this module."""

    def _init_transport(self, *_: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(httpx2.create_ssl_context(), options["limits"])

    def _init_proxy_transport(self, proxy: httpx2.Proxy, *_: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(httpx2.create_ssl_context(), options["limits"], proxy)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """A pool of aiohttp connections."""

    def __init__(self, context: ssl.SSLContext, limits: httpx2.Limits, proxy: httpx2.Proxy | None = None) -> None:
        """Opens no connection yet. Call it in the event loop that uses the transport."""
        self._proxy = None if proxy is None else str(proxy.url)
        self._proxy_headers = {} if proxy is None else dict(proxy.headers)
        if proxy is not None and proxy.auth is not None:
            self._proxy_headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(*proxy.auth)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limits.max_connections or 0,
                keepalive_timeout=limits.keepalive_expiry,
                ssl=context,
                socket_factory=_open_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies are for the client, if for anyone
            auto_decompress=False,  # httpx decodes
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request and waits for the head of the response.

        Raises:
            httpx2.TransportError: the same subclasses as httpx's own transport.
        """
        timeouts = request.extensions["timeout"]
        limits = [timeouts[part] for part in ("pool", "connect", "write", "read")]
        content = await request.aread()
        for _ in range(_LOOP_PASSES):
            await asyncio.sleep(0)
        is_tunnel = request.url.scheme == "https"
        try:
            # aiohttp's own time-outs do not cover a server that accepts no bytes.
            async with asyncio.timeout(None if None in limits else sum(limits)):
                response = await self._session.request(
                    request.method,
                    str(request.url),
                    # Headers for a proxy go into its CONNECT request, or without TLS into the request itself.
                    headers=request.headers if is_tunnel else {**request.headers, **self._proxy_headers},
                    data=io.BytesIO(content) if len(content) > _ONE_PART_MAX_BYTES else content,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        connect=timeouts["pool"], sock_connect=timeouts["connect"], sock_read=timeouts["read"]
                    ),
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers if is_tunnel else None,
                )
        except _FAILURES as exc:
            raise _to_httpx_error(exc) from exc
        if (connection := response.connection) is not None and connection.protocol is not None:
            # aiohttp would set a timer for each read. `ResponseBody` has one for the whole body.
            connection.protocol.read_timeout = None
        body = ResponseBody(response, timeouts["read"])
        if response.status >= _FIRST_ERROR_STATUS:
            return await _read_error(response, body, timeouts["read"], request)
        return httpx2.Response(
            response.status, headers=response.raw_headers, stream=body, request=request, extensions={"read": body.read}
        )

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._session.close()


class ResponseBody(httpx2.AsyncByteStream):
    """The bytes of a response as they arrive, without decoding."""

    def __init__(self, response: aiohttp.ClientResponse, stall_timeout_s: float | None) -> None:
        self._response = response
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if stall_timeout_s is not None:
            self._timer = self._loop.call_later(stall_timeout_s, self._check_stall)

    async def read(self) -> bytes:
        """Waits for the next bytes and returns them. Returns no bytes at the end.

        Raises:
            httpx2.TransportError: the connection was cut, or silent for too long.
        """
        self._waiting_since = self._loop.time()
        try:
            data: bytes = await self._response.content.readany()
        except _FAILURES as exc:
            raise _to_httpx_error(exc) from exc
        finally:
            self._waiting_since = None
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the bytes in small parts, for httpx's decoders."""
        while data := await self.read():
            for at in range(0, len(data), _COMPRESSED_PART_BYTES):
                yield data[at : at + _COMPRESSED_PART_BYTES]

    async def aclose(self) -> None:
        """Closes the connection, unless the body was read to its end: then the pool has it back."""
        if self._timer is not None:
            self._timer.cancel()
        self._response.close()

    def _check_stall(self) -> None:
        assert self._stall_timeout_s is not None, "the timer runs only with a time-out"
        now = self._loop.time()
        due_at = (now if self._waiting_since is None else self._waiting_since) + self._stall_timeout_s
        if due_at <= now:
            self._response.content.set_exception(aiohttp.SocketTimeoutError("no data"))
        else:
            self._timer = self._loop.call_at(due_at, self._check_stall)


async def _read_error(
    response: aiohttp.ClientResponse, body: ResponseBody, timeout_s: float | None, request: httpx2.Request
) -> httpx2.Response:
    """Returns a response with the beginning of an error's body: its length and its end are up to the server."""
    content = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while len(content) < ERROR_BODY_MAX_BYTES and (data := await body.read()):
                content += data
    except (TimeoutError, httpx2.TransportError):
        pass  # the status says more than the cut
    finally:
        await body.aclose()
    headers = httpx2.Headers(response.raw_headers)
    if headers.pop("content-encoding", "identity") != "identity":
        content = _decompressed(content)
    headers.pop("content-length", None)
    headers.pop("transfer-encoding", None)
    # Without a charset it is UTF-8, as JSON is. Python knows some that take a second for such a body, such as punycode.
    headers["content-type"] = headers.get("content-type", "").partition(";")[0]
    return httpx2.Response(
        response.status, headers=headers, content=bytes(content[:ERROR_BODY_MAX_BYTES]), request=request
    )


def _decompressed(content: bytearray) -> bytearray:
    """Returns the beginning of a body in gzip or zlib; nothing if it is in another coding."""
    try:
        return bytearray(zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, ERROR_BODY_MAX_BYTES))
    except zlib.error:
        return bytearray()


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_TIMEOUT_MS)
    return opened


def _to_httpx_error(exc: Exception) -> httpx2.TransportError:
    """Maps an error of aiohttp to httpx's. Drops texts that contain the URL, since a URL may contain a key."""
    match exc:
        case aiohttp.ClientHttpProxyError():
            error: httpx2.TransportError = httpx2.ProxyError(f"{exc.status} {exc.message}")
        case aiohttp.ClientResponseError():
            error = httpx2.RemoteProtocolError(exc.message)
        case aiohttp.ConnectionTimeoutError():
            error = httpx2.ConnectTimeout("connection timed out")
        case TimeoutError():
            error = httpx2.ReadTimeout(str(exc))
        case aiohttp.ClientConnectorError():
            error = httpx2.ConnectError(str(exc))
        case aiohttp.InvalidURL():
            error = httpx2.UnsupportedProtocol("invalid URL")
        case _:
            error = httpx2.ReadError(str(exc))
    return error
