"""A provider that misbehaves: what it sends is refused, or read, in bounded time and memory.

Each row is what the provider sends, and what the stage gets: a text, or an error. A row with a third part never ends.
The tolerance for providers that merely differ is in `tests/worker/model/test_chat_chunks.py` and `test_corpus.py`.
"""

import asyncio
import gzip
import resource
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelError, ModelOutputTooLong, ModelRejected, ModelUnavailable
from stagebus.worker.model.model_client import ModelClient, ModelRequest

KEY = "sk-of-the-operator"
SOON_S = 10.0
GROWTH_MAX_MIB = 96
STALL_S = 0.7
OUTPUT_MAX = 2**18
AT_ONCE = 8

OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\n\r\n"
CHUNKED = SSE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
ERROR = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n\r\n"


def event(data: bytes) -> bytes:
    """Returns an event."""
    return b"data: %b\n\n" % data


def delta(fields: bytes) -> bytes:
    """Returns the events of a whole answer with this delta."""
    return event(b'{"choices": [{"index": 0, "delta": {%b}, "finish_reason": "stop"}]}' % fields)


def encoded(coding: bytes, body: bytes, head: bytes = SSE) -> bytes:
    """Returns a response in a content coding."""
    return head.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %b\r\n\r\n" % coding) + body


ANSWER = delta(b'"content": "Hi"')
DONE = event(b"[DONE]")
FILL = b"x" * 2**16
PING = b": %b\n\n" % FILL[:500]
BOMB = b"\0" * 2**26
GZIP_BOMB = gzip.compress(BOMB)

Row = tuple[str, bytes, str | type[ModelError], *tuple[bytes, ...]]
HEADS: list[Row] = [
    ("not HTTP", b"\x16\x03\x01\x02\x00" * 100, ModelUnavailable),
    ("status line without an end", b"HTTP/1.1 200 ", ModelUnavailable, FILL),
    ("header without an end", OK + b"X: ", ModelUnavailable, FILL),
    ("headers without an end", OK, ModelUnavailable, b"X: y\r\n" * 5000),
    ("early hints without an end", b"", ModelUnavailable, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100),
    ("NUL in a header", OK + b"X: a\0b\r\n\r\n" + ANSWER, ModelUnavailable),
    ("carriage return in a header", OK + b"X: a\rSet-Cookie: b\r\n\r\n" + ANSWER, ModelUnavailable),
    ("thousands of cookies", SSE[:-2] + b"Set-Cookie: a=b; Domain=.com\r\n" * 50_000 + b"\r\n" + ANSWER, ModelUnavailable),
    ("two lengths", OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + ANSWER, ModelUnavailable),
    ("length and chunks", CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n", ModelUnavailable),
    ("negative length", OK + b"Content-Length: -5\r\n\r\n" + ANSWER, ModelUnavailable),
    ("length beyond the body", OK + b"Content-Length: 5000\r\n\r\n" + event(b'{"choices": []}'), ModelUnavailable),
    ("another protocol", b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ModelUnavailable),
    ("no content", b"HTTP/1.1 204 X\r\n\r\n", ModelUnavailable),
    ("status 999", b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", ModelUnavailable),
    ("status 000", b"HTTP/1.1 000 X\r\n\r\n", ModelUnavailable),
    ("wrong type", OK + b"Content-Type: text/html\r\n\r\n<h1>Hi</h1>", ModelUnavailable),
    ("junk as type", OK + b"Content-Type: \xff/\xfe; charset=\xff\r\n\r\n" + ANSWER, "Hi"),
]  # fmt: skip
BODIES: list[Row] = [
    ("line without an end", SSE + b"data: ", ModelOutputTooLong, FILL),
    ("spaces without an end", SSE, ModelOutputTooLong, b" " * 2**16),
    ("empty lines without an end", SSE, ModelOutputTooLong, b"\n" * 2**16),
    ("comments without an end", SSE, ModelOutputTooLong, PING * 100),
    ("event names without an end", SSE, ModelOutputTooLong, b"event: %b\n" % FILL[:500] * 100),
    ("data lines without an end", SSE, ModelOutputTooLong, b"data: %b\n" % FILL[:500] * 100),
    ("error lines without an end", SSE, ModelOutputTooLong, b"error: %b\n" % FILL[:500] * 100),
    ("bare lines without an end", SSE, ModelOutputTooLong, b"{%b\n" % FILL[:500] * 100),
    ("empty deltas without an end", SSE, ModelOutputTooLong, event(b'{"choices":[{"delta":{}}]}') * 1000),
    ("pings without an end", SSE, ModelOutputTooLong, event(b'{"type":"ping"}') * 1000),
    ("comments behind the finish reason", SSE + ANSWER, ModelOutputTooLong, PING * 100),
    ("comments behind [DONE]", SSE + ANSWER + DONE, "Hi", PING * 100),
    ("a line behind [DONE]", SSE + ANSWER + DONE, "Hi", FILL),
    ("chunk extension without an end", CHUNKED + b"5;", ModelUnavailable, FILL),
    ("trailers without an end", CHUNKED + b"5\r\nhello\r\n0\r\n", ModelUnavailable, b"X: y\r\n" * 5000),
    ("trailer without an end", CHUNKED + b"5\r\nhello\r\n0\r\nX: ", ModelUnavailable, FILL),
    ("chunk of 2^400 bytes", CHUNKED + b"f" * 100 + b"\r\n", ModelUnavailable),
    ("negative chunk", CHUNKED + b"-5\r\n", ModelUnavailable),
    ("gzip bomb", encoded(b"gzip", GZIP_BOMB), ModelOutputTooLong),
    ("zlib bomb", encoded(b"deflate", zlib.compress(BOMB)), ModelOutputTooLong),
    ("five codings", encoded(b"gzip, gzip, gzip, gzip, gzip", GZIP_BOMB), ModelUnavailable),
    ("no gzip at all", encoded(b"gzip", ANSWER), ModelUnavailable),
]  # fmt: skip
JSON: list[Row] = [
    ("deep", SSE + event(b'{"choices":' + b"[" * 500_000), ModelUnavailable),
    ("deep and closed", SSE + event(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ModelUnavailable),
    ("deep objects", SSE + event(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), ModelUnavailable),
    ("deep parts", SSE + delta(b'"content": ' + b'[{"text":' * 400 + b'"x"' + b"}]" * 400), ModelUnavailable),
    ("deep errors", SSE + event(b'{"error":' * 1000 + b'"x"' + b"}" * 1000), ModelUnavailable),
    ("place of 5,000 digits", SSE + delta(b'"content":"Hi","tool_calls":[{"index":"' + b"9" * 5000 + b'"}]'), "Hi"),
    ("number of 5,000 digits", SSE + event(b'{"choices": [{"index": ' + b"9" * 5000 + b', "delta": {"content": "Hi"}}]}'), ModelUnavailable),
    ("NaN and Infinity", SSE + event(b'{"choices": [], "usage": {"prompt_tokens": NaN, "total_tokens": Infinity}}') + ANSWER, "Hi"),
    ("negative usage", SSE + ANSWER + event(b'{"choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": 1e300}}'), "Hi"),
    ("duplicate keys", SSE + delta(b'"content": "A", "content": "Hi"'), "Hi"),
    ("NUL", SSE + delta(b'"content": "a\\u0000b"'), "a\0b"),
    ("NUL between events", SSE + b"\0\0\n" + ANSWER, "Hi"),
    ("invalid UTF-8", SSE + delta(b'"content": "\xff\xfe"'), ModelUnavailable),
    ("half a surrogate pair", SSE + delta(b'"content": "Hi\\ud83d"'), "Hi"),
    ("100,000 fields", SSE + delta(b",".join(b'"k%d":"v"' % n for n in range(100_000)) + b',"content":"Hi"'), "Hi"),
    ("300,000 choices", SSE + event(b'{"choices":[' + b",".join(b'{"index":%d}' % n for n in range(300_000)) + b"]}"), ModelOutputTooLong),
    ("calls with huge places", SSE + delta(b'"content":"Hi","tool_calls":[{"index":99999999999,"id":"x","function":{"name":"f"}}]'), "Hi"),
    ("a list", SSE + event(b"[1, 2]"), ModelUnavailable),
    ("nothing but [DONE]", SSE + DONE, ModelUnavailable),
]  # fmt: skip
ERRORS: list[Row] = [
    ("error without an end", ERROR % 500, ModelUnavailable, FILL),
    ("refusal without an end", ERROR % 400, ModelRejected, FILL),
    ("error in gzip", encoded(b"gzip", GZIP_BOMB, ERROR % 500), ModelUnavailable),
    ("error in a coding that is none", encoded(b"gzip", b"junk", ERROR % 400), ModelRejected),
    ("deep error", ERROR % 400 + b"[" * 300_000, ModelRejected),
    ("errors in errors", ERROR % 400 + b'{"error":' * 1000 + b"1" + b"}" * 1000, ModelRejected),
    ("deep message", ERROR % 400 + b'{"message":' + b"[" * 1000 + b"]" * 1000 + b"}", ModelRejected),
    ("error of other types", ERROR % 400 + b'{"error": {"message": [[{}]], "code": {"a": 1}, "type": 5}}', ModelRejected),
    ("error of digits", ERROR % 400 + b'{"error": ' + b"9" * 9000 + b"}", ModelRejected),
    ("error of words", ERROR % 400 + b'{"error": {"message": "' + b"rate " * 20_000 + b'"}}', ModelRejected),
    ("cut error", b"HTTP/1.1 400 X\r\nContent-Length: 500\r\n\r\n{", ModelRejected),
    ("wait of 30 years", b"HTTP/1.1 429 X\r\nRetry-After: 999999999\r\nContent-Length: 0\r\n\r\n", ModelUnavailable),
    ("wait until the year 99999", b"HTTP/1.1 429 X\r\nDate: x\r\nRetry-After: Fri, 99 Dec 99999 23:59:59\r\n\r\n", ModelUnavailable),
]  # fmt: skip


@pytest.fixture
async def ask() -> AsyncIterator[Callable]:
    """Returns a function that lets a provider send something, and returns what the stage gets."""
    models, servers, turns = [], [], asyncio.Semaphore(AT_ONCE)

    async def ask(sent: bytes, *endless: bytes, **entry: object) -> str | type[ModelError]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(sent)
                await writer.drain()
                while endless:
                    writer.write(endless[0])
                    await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        file = ProvidersFile.model_validate(
            {"providers": {"p": {"base_url": url, "models": ["m"], "key": KEY, **entry}}}
        )
        model = ModelClient(
            Settings(model_stall_timeout_s=STALL_S, model_connect_timeout_s=STALL_S, model_output_max_bytes=OUTPUT_MAX),
            Providers(file),
        )
        models.append(model)
        request = ModelRequest(model="m", messages=[{"role": "user", "content": "Hello"}])
        try:
            async with turns, asyncio.timeout(SOON_S), aclosing(model.stream(request)) as chunks:
                return "".join([text_of(chunk) async for chunk in chunks])
        except ModelError as exc:
            return str(exc) if KEY in str(exc) else type(exc)

    yield ask
    for model in models:
        await model.aclose()
    for server in servers:
        server.close()


def text_of(chunk: dict) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices") or ())


@pytest.mark.parametrize("rows", [HEADS, BODIES, JSON, ERRORS], ids=["heads", "bodies", "JSON", "errors"])
async def test_misbehaving_provider_costs_bounded_time_and_memory(ask: Callable, rows: list[Row]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = await asyncio.gather(*(ask(sent, *endless) for _, sent, _, *endless in rows))

    assert {name: had for (name, *_), had in zip(rows, got, strict=True)} == {
        name: wanted for name, _, wanted, *_ in rows
    }
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < GROWTH_MAX_MIB


@pytest.mark.parametrize("api", ["messages", "responses"])
async def test_other_apis_have_the_same_limits(ask: Callable, api: str) -> None:
    rows = [row for row in BODIES if row[2] is ModelOutputTooLong and row[3:] and ANSWER not in row[1]]
    got = await asyncio.gather(*(ask(sent, *endless, api=api) for _, sent, _, *endless in rows))

    assert {
        name: had
        for (name, *_), had in zip(rows, got, strict=True)
        if had not in (ModelOutputTooLong, ModelUnavailable)
    } == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_another_origin_gets_neither_the_conversation_nor_the_key(ask: Callable, status: int) -> None:
    received = []

    async def steal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1))
        writer.close()

    async with await asyncio.start_server(steal, "127.0.0.1", 0) as thief:
        port = thief.sockets[0].getsockname()[1]
        head = b"HTTP/1.1 %d X\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % (status, port)
        assert await ask(head) is ModelRejected

    assert received == []
