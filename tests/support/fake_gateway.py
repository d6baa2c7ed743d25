"""A fake gateway that answers connections one after the other with scripted bytes."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Self

HEAD = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\nconnection: close\r\n%s\r\n"


class Asked(NamedTuple):
    """A received request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """A response; the end of the connection ends its body, unless it is cut or left open."""

    body: bytes = b""
    status: int = 200
    media_type: str = "text/event-stream"
    is_cut: bool = False  # chunked, and without the last chunk
    is_left_open: bool = False


def frame(sequence: int, event: str = "tool_completion_chunk", data: str = '{"stage_id":"extraction"}') -> bytes:
    """Encode an event as a frame."""
    return f"id: 7-{sequence}\nevent: {event}\ndata: {data}\n\n".encode()


RETRY = b"retry: 0\n\n"
DONE = '{"stage_id":"run"}'


class FakeGateway:
    """Serves on a free port; `answer` is called for each request."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self._answer = answer
        self.asked: list[Asked] = []
        self._tasks: set[asyncio.Task[None] | None] = set()

    @classmethod
    def scripted(cls, *answers: Answer) -> Self:
        """Answer each connection with the next answer."""
        remaining = iter(answers)
        return cls(lambda _: next(remaining))

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    def cursors(self) -> list[str | None]:
        """Return the Last-Event-ID of each request."""
        return [asked.headers.get("last-event-id") for asked in self.asked]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            self.asked.append(Asked(method, path, headers, body))
            await self._write(writer, self._answer(self.asked[-1]))
        finally:
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        encoding = b"transfer-encoding: chunked\r\n" if answer.is_cut else b""
        writer.write(HEAD % (answer.status, answer.media_type.encode(), encoding))
        if answer.is_cut:
            writer.write(b"%x\r\n%b\r\n" % (len(answer.body), answer.body))
        elif answer.status != 204:
            writer.write(answer.body)
        await writer.drain()
        if answer.is_left_open:
            await asyncio.Event().wait()
