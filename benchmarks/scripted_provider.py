"""A provider that streams prepared chunks from memory, so that its own cost is negligible.

    python -m benchmarks.scripted_provider        prints `listening on http://127.0.0.1:…`

The model's name is the script: `chunks=400,per_s=40`; `per_s=0` is as fast as the socket takes
them. The text of each paced chunk is the time of its sending. /v1/responses and /v1/messages
answer with events of their APIs, as fast as the socket takes them.
It also keeps when each request came: `GET /asked` answers with the times by prompt, and forgets them.
"""

import asyncio
import json
import time
from typing import Any, Final, NamedTuple

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


def event(**data: Any) -> bytes:
    """Returns a typed event, in HTTP chunked encoding."""
    frame = b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))
    return b"%x\r\n%b\r\n" % (len(frame), frame)


class Answer(NamedTuple):
    """The start of an answer, each of its tokens, and its end."""

    start: bytes
    token: bytes
    end: bytes


TOKEN: Final = chunk({"content": " token"})
LAST: Final = b"0\r\n\r\n"
END: Final = chunk({}, "stop") + b"e\r\ndata: [DONE]\n\n\r\n" + LAST
ITEM: Final = "msg_0fabc13af1ee0049006a691dfebdc881a1ae18d027c313d8ce"
ANSWERS: Final = {
    b"/v1/responses": Answer(
        event(type="response.created", sequence_number=0, response={"model": "gpt-5.6", "status": "in_progress"}),
        event(
            type="response.output_text.delta", content_index=0, delta=" token", item_id=ITEM, logprobs=[],
            obfuscation="RvoJ43TaUvnC", output_index=0, sequence_number=6,
        ),
        event(type="response.completed", response={"status": "completed", "output": []}) + LAST,
    ),
    b"/v1/messages": Answer(
        event(type="message_start", message={"model": "claude-sonnet-5", "content": []})
        + event(type="content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": " token"}),
        event(type="content_block_stop", index=0)
        + event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1})
        + event(type="message_stop") + LAST,
    ),
}  # fmt: skip
CHAT: Final = Answer(b"", TOKEN, END)


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
            prompt = (request.get("messages") or request["input"])[-1]["content"]
            self.asked[str(prompt)] = time.monotonic_ns()
            answer = ANSWERS.get(head.split(b" ", 2)[1], CHAT)
            self.task = asyncio.create_task(self._answer(request["model"], answer))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        if self.task is not None:
            self.task.cancel()

    async def _answer(self, model: str, answer: Answer) -> None:
        script = dict(item.split("=") for item in model.split(","))
        count, per_s = int(script["chunks"]), float(script.get("per_s", 0))
        self.transport.write(HEAD + answer.start)
        started = time.monotonic()
        for number in range(count):
            if per_s:
                await asyncio.sleep(max(0.0, started + (number + 1) / per_s - time.monotonic()))
                self.transport.write(stamped())
            else:
                await self._writable.wait()
                self.transport.write(answer.token)
        self.transport.write(answer.end)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, "127.0.0.1", 0, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
