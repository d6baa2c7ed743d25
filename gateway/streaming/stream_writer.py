"""The interface of a server that can write a stream to its client's socket without the layers of the app.

Everything that carries a request to its handler takes 20 KiB: about twenty nested coroutines, the headers and the
scope. A stream may stay open for an hour. So a server of ours puts a `StreamWriter` into the request's scope, and
the app returns as soon as the response has begun. The writer sends the rest. On other servers there is none, and the
response sends its body through the app's layers.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol

from starlette.types import Scope

# The key of the writer in `scope["extensions"]`.
STREAM_WRITER: Final = "stagebus.stream_writer"


class StreamTorn(Exception):
    """The stream cannot continue, and its client would take a clean end for the run's: cut the connection.

    With HTTP/1.1 the last chunk is missing, so every client sees that the response is incomplete.
    """


class StreamWriter(Protocol):
    """Writes the body of one response to the client's socket."""

    # Called once when the client disconnects.
    on_disconnect: Callable[[], None]

    def detach(self, body: AsyncGenerator[bytes, None]) -> None:
        """Takes the response over from the app: once the app has returned, the writer sends the body and closes it.

        If the body raises `StreamTorn`, the writer closes the connection without the end of the response.
        """
        ...

    @property
    def is_writable(self) -> bool:
        """True if the client is connected and the socket's buffer has room, so that `write` may be called."""
        ...

    def write(self, data: bytes) -> None:
        """Writes a part of the body in addition to those that `body` yields, without waiting."""
        ...


def stream_writer_of(scope: Scope) -> StreamWriter | None:
    """Returns the writer of the request's connection, or None on a server that has none."""
    writer: StreamWriter | None = scope.get("extensions", {}).get(STREAM_WRITER)
    return writer
