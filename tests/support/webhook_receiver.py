"""A receiver of webhooks that checks every signature, and that may behave in any way, by the path of the URL."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from standardwebhooks.webhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def _answer(status: str, headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


class Message(NamedTuple):
    """A message whose signature is valid."""

    path: str
    webhook_id: str
    payload: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.payload["data"]["run_id"])


class WebhookReceiver:
    """Attributes: `messages`, all that came, in order; `open`, the requests that are being answered, by path.

    While it `is_moody`, the path /random behaves in any way.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open: Counter[str] = Counter()
        self.most_open: Counter[str] = Counter()
        self.answers: dict[str, list[bytes]] = {}  # by path: given one after the other, then 200
        self.port = 0
        self.is_moody = True

    def url(self, path: str) -> str:
        """Returns the URL of a behaviour: /ok, /hang, /drip, /huge, /half, /reset, /redirect, /500, /410 or any in `answers`."""
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Message]:
        """Returns the messages that came to a path."""
        return [message for message in self.messages if message.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a request and behaves."""
        path = ""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request_line, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            path = request_line.split(" ")[1]
            payload = Webhook(SECRET).verify(body, headers)
            assert payload == json.loads(body)
            self.messages.append(Message(path, headers["webhook-id"], payload))
            self.open[path] += 1
            self.most_open[path] = max(self.most_open[path], self.open[path])
            await self._behave(path, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the sender has gone
        finally:
            self.open[path] -= 1
            with suppress(ConnectionError):
                writer.close()

    async def _behave(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if path == "/random" and self.is_moody:
            path = random.choice(["/ok", "/ok", "/ok", "/500", "/reset", "/redirect", "/hang"])
        match path:
            case "/hang" | "/half":
                writer.write(_OK[:-1] if path == "/half" else b"")
                await reader.read()  # until the sender gives up
            case "/drip":
                for byte in _OK[:-1]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
            case "/huge":
                writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
            case "/reset":
                writer.transport.abort()
            case "/redirect":
                writer.write(_answer("307 Temporary Redirect", f"location: {self.url('/ok')}\r\n"))
            case "/500" | "/410":
                writer.write(_answer(f"{path[1:]} No"))
            case _:
                scripted = self.answers.get(path, [])
                writer.write(scripted.pop(0) if scripted else _OK)
        await writer.drain()


@asynccontextmanager
async def receiving() -> AsyncIterator[WebhookReceiver]:
    """Serves a receiver on a free port of this process."""
    receiver = WebhookReceiver()
    tasks: set[asyncio.Task[None]] = set()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: str, headers: str = "") -> bytes:
    """Returns an answer for `WebhookReceiver.answers`."""
    return _answer(status, headers)
