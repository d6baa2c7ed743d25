"""Corrects the messages of one MCP connection before the SDK validates them; sans-IO.

The SDK (2.3) validates a whole result and fails on the first fault, so one bad tool would cost a server all its tools.
Spec: https://modelcontextprotocol.io/specification/2025-11-25/basic
"""

import re
from collections.abc import Callable
from typing import Any, Final

from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from stagebus.worker.tools.mcp.mcp_listing import plain_listing
from stagebus.worker.tools.mcp.mcp_results import plain_result
from stagebus.worker.tools.mcp.mcp_tasks import plain_capability

# The code of the error that stands for an ended session. It is not in a range of the protocol.
SESSION_LOST: Final = -31404
# A server may wait for this many answers to its own requests.
UNANSWERED_MAX: Final = 100

# The SDK's messages about a response that broke off have the code that servers use for errors of their own.
_BROKEN_OFF: Final = ("SSE stream ended", "SSE stream failed")
_SESSION_WORDS: Final = re.compile(
    r"session.{0,40}(not found|terminated|expired|invalid|unknown|does not exist|no longer|closed)"
    r"|\b(no|no valid|invalid|unknown|expired|missing) (mcp.)?session|server not initialized",
    re.IGNORECASE | re.DOTALL,
)
_END_OF_SESSION: Final = re.compile(
    r"\W*session (id )?((is|was|has been) )?(not found|terminated|expired)\W*", re.IGNORECASE
)
_ESCAPES: Final = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class TooManyRequests(Exception):
    """The server sends requests and does not take their answers."""


class CallLost(Exception):
    """The connection or the session ended during a call.

    Attributes:
        is_refused: whether the server certainly has not executed the call.
    """

    def __init__(self, words: str, *, is_refused: bool = False) -> None:
        super().__init__(words)
        self.is_refused = is_refused


class ServerMessages:
    """The requests that are under way on one connection.

    Attributes:
        left_out: the tools of the last listing that are not of the protocol's form, and the reason for each.
    """

    def __init__(self, schema_max_bytes: int) -> None:
        self.left_out: dict[str, str] = {}
        self._schema_max_bytes = schema_max_bytes
        self._plain_by_id: dict[RequestId, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self._unanswered = 0

    def sent(self, message: JSONRPCMessage) -> None:
        """Notes a request to the server before it is sent, or an answer that the server took."""
        match message:
            case JSONRPCRequest(id=id_, method="tools/list", params=params):
                if not (params or {}).get("cursor"):
                    self.left_out = {}
                self._plain_by_id[id_] = self._plain_listing
            case JSONRPCRequest(id=id_, method="tools/call"):
                self._plain_by_id[id_] = plain_result
            case JSONRPCRequest(id=id_, method="initialize"):
                self._plain_by_id[id_] = plain_greeting
            case JSONRPCNotification(method="notifications/cancelled", params={"requestId": id_}):
                self._plain_by_id.pop(id_, None)
            case JSONRPCResponse() | JSONRPCError():
                self._unanswered -= 1

    def is_answer(self, message: JSONRPCMessage) -> bool:
        """Returns whether a message, which was not passed to `received` yet, answers a request for tools or a call."""
        return isinstance(message, JSONRPCResponse | JSONRPCError) and message.id in self._plain_by_id

    def received(self, message: JSONRPCMessage) -> JSONRPCMessage:
        """Returns a message of the server in a form that the SDK accepts.

        Raises:
            TooManyRequests: too many requests of the server wait for their answers to be taken.
        """
        match message:
            case JSONRPCResponse():
                plain = self._plain_by_id.pop(message.id, None)
                return message if plain is None else message.model_copy(update={"result": plain(message.result)})
            case JSONRPCError(id=id_, error=error):
                if id_ is not None:
                    self._plain_by_id.pop(id_, None)
                if error.code == CONNECTION_CLOSED and not error.message.startswith(_BROKEN_OFF):
                    # The SDK means the end of the connection by this code, servers any error.
                    return message.model_copy(update={"error": error.model_copy(update={"code": INTERNAL_ERROR})})
            case JSONRPCRequest():
                self._unanswered += 1
                if self._unanswered > UNANSWERED_MAX:
                    raise TooManyRequests(f"the server sent {UNANSWERED_MAX} requests and took no answer")
        return message

    def _plain_listing(self, result: dict[str, Any]) -> dict[str, Any]:
        return plain_listing(result, self.left_out, self._schema_max_bytes)


def plain_greeting(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of `initialize` with what Stagebus uses: the version, and whether calls may be tasks.

    Servers omit the rest, or write null.
    """
    given = result.get("serverInfo")
    info = {name: value for name, value in given.items() if isinstance(value, str)} if isinstance(given, dict) else {}
    return {
        "protocolVersion": result.get("protocolVersion"),
        "capabilities": {"tools": {}, **plain_capability(result.get("capabilities"))},
        "serverInfo": {"name": info.get("name", ""), "version": info.get("version", "")},
    }


def says_session_is_lost(text: str) -> bool:
    """Returns whether a server's refusal of a request says that it does not know the session."""
    return _SESSION_WORDS.search(text) is not None


def is_end_of_session(message: str) -> bool:
    """Returns whether an error of a server says that the session has ended, and nothing else."""
    return _END_OF_SESSION.fullmatch(message) is not None


def without_lone_surrogates(json: bytes) -> bytes:
    r"""Replaces escapes of half a surrogate pair, which are not Unicode, by U+FFFD.

    A JavaScript server that cuts a text in the middle of an emoji sends one (`\ud83d`), and no parser accepts it.
    """
    if b"\\ud" not in json and b"\\uD" not in json:
        return json
    return _ESCAPES.sub(lambda match: rb"\ufffd" if match[1] else match[0], json)
