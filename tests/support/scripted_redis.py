"""A server that answers Redis commands from a table, for replies that a real server gives only at rare moments."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

OK = b"+OK\r\n"
Reply = bytes | list[bytes] | Callable[[list[str]], bytes]


class ScriptedRedis:
    """Notes all commands.

    Args:
        replies: by the command's first word, its reply, or its next replies, of which the last one is repeated, or a function
            of the command's words. An empty reply is none.
    """

    def __init__(self, **replies: Reply) -> None:
        self.replies = replies
        self.commands: list[str] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._subscribers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Closes the server and all connections."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._writers)

    def push(self, message: bytes) -> None:
        """Sends a message to every connection that has subscribed to something."""
        for writer in self._subscribers & self._writers:
            writer.write(message)

    def sent(self, *words: str) -> list[str]:
        """Returns the noted commands that begin with one of these words."""
        return [command for command in self.commands if command.split(" ")[0] in words]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while count := (await reader.readline())[1:]:
                words = [await _read_bulk(reader) for _ in range(int(count))]
                self.commands.append(" ".join(words))
                if words[0].endswith("SUBSCRIBE"):
                    self._subscribers.add(writer)
                writer.write(self._reply_to(words))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _reply_to(self, words: list[str]) -> bytes:
        reply = self.replies.get(words[0], OK)
        if callable(reply):
            return reply(words)
        if isinstance(reply, bytes):
            return reply
        return reply.pop(0) if len(reply) > 1 else reply[0]


async def _read_bulk(reader: asyncio.StreamReader) -> str:
    length = int((await reader.readline())[1:])
    return (await reader.readexactly(length + 2))[:-2].decode()


@asynccontextmanager
async def scripted_redis(tls: ssl.SSLContext | None = None, **replies: Reply) -> AsyncIterator[ScriptedRedis]:
    """Starts a server on a free port, and stops it."""
    server = ScriptedRedis(**replies)
    await server.start(tls)
    try:
        yield server
    finally:
        server.stop()
