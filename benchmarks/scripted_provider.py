"""A provider that streams prepared chunks from memory, so that its own cost is negligible.

    python -m benchmarks.scripted_provider        prints `listening on http://127.0.0.1:…`

The model's name is the script: `chunks=400,per_s=40`; `per_s=0` is as fast as the socket takes
them. The text of each paced chunk is the time of its sending.
It also keeps when each request came: `GET /asked` answers with the times by prompt, and forgets them.
"""

import asyncio
import json
import time
from typing import Any, Final

import orjson
import uvloop

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    """Returns a chunk in OpenAI's format, in HTTP chunked encoding."""
    body = orjson.dumps({
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion.chunk", "created": 1741569952,
        "model": "gpt-4.1-2025-04-14", "service_tier": "default", "system_fingerprint": "fp_50cad350e4",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        "usage": None, "obfuscation": "aBcDeFg",
    })  # fmt: skip
    data = b"data: %b\n\n" % body
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN: Final = chunk({"content": " token"})
END: Final = chunk({}, "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


_BEFORE, _, _AFTER = chunk({"content": " 0123456789abcdef"}).partition(b"0123456789abcdef")


def stamped() -> bytes:
    """Returns a token's chunk whose text is the time of sending."""
    return b"%b%016d%b" % (_BEFORE, time.monotonic_ns(), _AFTER)


class Provider(asyncio.Protocol):
    """One connection of a worker."""

    asked: dict[str, int] = {}  # noqa: RUF012 - of the whole process

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.task: asyncio.Task[None] | None = None
        self._data = b""
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET"):
            answer = json.dumps(self.asked).encode()
            self.asked.clear()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
            self._data = b""
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) >= length:
            self._data = b""
            request = orjson.loads(body)
            self.asked[str(request["messages"][-1]["content"])] = time.monotonic_ns()
            self.task = asyncio.create_task(self._answer(request["model"]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        if self.task is not None:
            self.task.cancel()

    async def _answer(self, model: str) -> None:
        script = dict(item.split("=") for item in model.split(","))
        count, per_s = int(script["chunks"]), float(script.get("per_s", 0))
        self.transport.write(HEAD)
        started = time.monotonic()
        for number in range(count):
            if per_s:
                await asyncio.sleep(max(0.0, started + (number + 1) / per_s - time.monotonic()))
                self.transport.write(stamped())
            else:
                await self._writable.wait()
                self.transport.write(TOKEN)
        self.transport.write(END)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", 0, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
