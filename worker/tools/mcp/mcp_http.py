"""Adapts the HTTP responses of an MCP server: the end of a session gets an error code of its own.

Servers report it by 404, as the protocol demands, or by another status and words. The SDK (2.3) tells neither from other
errors.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#session-management
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpx2
import orjson
from mcp.client.streamable_http import MCP_SESSION_ID

from stagebus.worker.tools.mcp.mcp_messages import SESSION_LOST, says_session_is_lost, without_lone_surrogates

_NOT_FOUND: Final = 404
# A refusal of one of these statuses is about the caller's rights or rate.
_OTHER_REFUSALS: Final = frozenset({401, 403, 429})
# The end of a session is a courtesy; a server that does not answer it must not delay the next session.
DELETE_MAX_S: Final = 2.0
CONFIRM_MAX_S: Final = 30.0


class SessionTransport(httpx2.AsyncBaseTransport):
    """Wraps the transport of one connection."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._is_lost = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request. Returns a JSON-RPC error with the code `SESSION_LOST` if the server has ended the session."""
        if request.method == "DELETE":
            return await self._delete(request)
        if request.method == "POST" and not _expects_result(request):
            # Messages go out one after another: a server that does not confirm one would hold up all others.
            request.extensions["timeout"] = {**request.extensions.get("timeout", {}), "read": CONFIRM_MAX_S}
        response = await self._inner.handle_async_request(request)
        if request.method == "POST" and MCP_SESSION_ID in request.headers and await _is_session_lost(response):
            await response.aclose()
            self._is_lost = True
            error = {"code": SESSION_LOST, "message": "the MCP server has ended the session"}
            return httpx2.Response(response.status_code, json={"jsonrpc": "2.0", "id": None, "error": error})
        if isinstance(response.stream, httpx2.AsyncByteStream) and not response.is_closed:
            response.stream = _LineStream(response.stream)
        return response

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()

    async def _delete(self, request: httpx2.Request) -> httpx2.Response:
        if self._is_lost:
            return httpx2.Response(204)
        try:
            async with asyncio.timeout(DELETE_MAX_S):
                response = await self._inner.handle_async_request(request)
                await response.aread()
                return response
        except TimeoutError:
            return httpx2.Response(204)


def _expects_result(request: httpx2.Request) -> bool:
    """Returns whether a message is a request, whose result may take any time, and not a notification or an answer."""
    message = orjson.loads(request.content)
    return "method" in message and "id" in message


async def _is_session_lost(response: httpx2.Response) -> bool:
    """Returns whether a response to a request of a session says that the session is over. Reads the body if it matters."""
    if response.status_code == _NOT_FOUND:
        return True
    if not response.is_client_error or response.status_code in _OTHER_REFUSALS:
        return False
    return says_session_is_lost((await response.aread()).decode(errors="replace"))


class _LineStream(httpx2.AsyncByteStream):
    """A body in whole lines, without escapes of lone surrogates. The wrapped stream limits the length."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest: list[bytes] = []
        async for part in self._body:
            whole = 1 + max(part.rfind(b"\n"), part.rfind(b"\r"))
            if whole:
                yield without_lone_surrogates(b"".join([*rest, part[:whole]]))
                rest.clear()
            rest.append(part[whole:])
        yield without_lone_surrogates(b"".join(rest))

    async def aclose(self) -> None:
        """Closes the body."""
        await self._body.aclose()
