"""HTTP as the openai SDK asks it, carried by aiohttp in place of httpcore.

A model says little at a time, so nearly every token is a read of its own. httpcore takes
130 us more CPU than aiohttp for one (h11 and anyio, in Python; openai 3.54, 1,000 tokens/s in
all), more than all else that a worker does for it. The SDK brings such a transport,
`DefaultAioHttpClient`; this one also says right what went wrong, limits the time in which
a request may be sent, takes long headers, and lets the body be read piece by piece.
"""

import asyncio
import io
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import httpx2
from aiohttp.http_exceptions import HttpProcessingError

# Of the event loop, in which it hears that a server has closed a connection that would be used again.
_TURNS: Final = 3
# aiohttp sends more than that piece by piece, if asked to.
_AT_ONCE_BYTES: Final = 1 << 20
# A connection that is closed before all was sent goes after that, though its server takes nothing.
_UNSENT_MS: Final = 30_000
# aiohttp's 8 KiB are less than what some proxies put into a policy or a cookie.
_HEADER_MAX_BYTES: Final = 64 * 1024
_FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError)


class AiohttpClient(httpx2.AsyncClient):
    """httpx's client, proxies of the environment and all, with this module's transports."""

    def _init_transport(self, *_: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(httpx2.create_ssl_context(), options["limits"])

    def _init_proxy_transport(self, proxy: httpx2.Proxy, *_: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(httpx2.create_ssl_context(), options["limits"], proxy)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """A pool of connections."""

    def __init__(self, context: ssl.SSLContext, limits: httpx2.Limits, proxy: httpx2.Proxy | None = None) -> None:
        """Opens nothing yet; call in the event loop that uses it."""
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
            cookie_jar=aiohttp.DummyCookieJar(),  # httpx has its own
            auto_decompress=False,  # and decodes
            max_line_size=_HEADER_MAX_BYTES,
            max_field_size=_HEADER_MAX_BYTES,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request and wait for the answer's head.

        Raises:
            httpx2.TransportError: as httpx's own transport does.
        """
        timeouts = request.extensions["timeout"]
        limits = [timeouts[part] for part in ("pool", "connect", "write", "read")]
        content = await request.aread()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        is_tunnel = request.url.scheme == "https"
        try:
            # aiohttp's own do not watch a server that takes no bytes.
            async with asyncio.timeout(None if None in limits else sum(limits)):
                response = await self._session.request(
                    request.method,
                    str(request.url),
                    # What is for a proxy goes with its CONNECT, or where there is none with the request.
                    headers=request.headers if is_tunnel else {**request.headers, **self._proxy_headers},
                    data=io.BytesIO(content) if len(content) > _AT_ONCE_BYTES else content,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        connect=timeouts["pool"], sock_connect=timeouts["connect"], sock_read=timeouts["read"]
                    ),
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers if is_tunnel else None,
                )
        except _FAILURES as exc:
            raise _translated(exc) from exc
        if (connection := response.connection) is not None and connection.protocol is not None:
            # aiohttp makes and drops a timer for each read; the body has one in all.
            connection.protocol.read_timeout = None
        body = ResponseBody(response, timeouts["read"])
        return httpx2.Response(
            response.status, headers=response.raw_headers, stream=body, request=request, extensions={"read": body.read}
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class ResponseBody(httpx2.AsyncByteStream):
    """An answer's bytes as they come, as the server encoded them."""

    def __init__(self, response: aiohttp.ClientResponse, stall_timeout_s: float | None) -> None:
        self._response = response
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._asked_at: float | None = None  # since when bytes are waited for
        self._watch: asyncio.TimerHandle | None = None
        if stall_timeout_s is not None:
            self._watch = self._loop.call_later(stall_timeout_s, self._look)

    async def read(self) -> bytes:
        """Wait for the next bytes; none at the end.

        Raises:
            httpx2.TransportError: it is cut, or silent for too long.
        """
        self._asked_at = self._loop.time()
        try:
            data: bytes = await self._response.content.readany()
        except _FAILURES as exc:
            raise _translated(exc) from exc
        finally:
            self._asked_at = None
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def aclose(self) -> None:
        """Read to its end, the body has left its connection to the next request; else that closes."""
        if self._watch is not None:
            self._watch.cancel()
        self._response.close()

    def _look(self) -> None:
        assert self._stall_timeout_s is not None, "else nothing calls this"
        now = self._loop.time()
        due_at = (now if self._asked_at is None else self._asked_at) + self._stall_timeout_s
        if due_at <= now:
            self._response.content.set_exception(aiohttp.SocketTimeoutError("nothing came"))
        else:
            self._watch = self._loop.call_at(due_at, self._look)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux's
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)
    return opened


def _translated(exc: Exception) -> httpx2.TransportError:
    """httpx's word for a failure of aiohttp's; not its text where that names the URL, which may hold a key."""
    match exc:
        case aiohttp.ClientHttpProxyError():
            said: httpx2.TransportError = httpx2.ProxyError(f"{exc.status} {exc.message}")
        case aiohttp.ClientResponseError():
            said = httpx2.RemoteProtocolError(exc.message)
        case aiohttp.ConnectionTimeoutError():
            said = httpx2.ConnectTimeout("no connection in time")
        case TimeoutError():
            said = httpx2.ReadTimeout(str(exc))
        case aiohttp.ClientConnectorError():
            said = httpx2.ConnectError(str(exc))
        case aiohttp.InvalidURL():
            said = httpx2.UnsupportedProtocol("no address that can be asked")
        case _:
            said = httpx2.ReadError(str(exc))
    return said
