"""Attacks on the gateway, from top to bottom: raw bytes on a socket first, then hostile values at every endpoint.

Each row is an attack and the statuses that must be seen; CLOSED is the end of the connection. After each table the
gateway must answer, and must not have grown. Attacks that need a process of their own are in
`tests/gateway/server/test_connection.py` (clients that do not read, too many connections) and `auth/test_hostile_jwt.py`.
"""

import asyncio
import logging
import re
import resource
import time
from contextlib import suppress
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.api.endpoint import Endpoint
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import (
    Error,
    Event,
    RetryScheduled,
    RunStarted,
    StageCompleted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.domain.stage_results import ToolOutcome
from stagebus.shared.observability.logging import JsonFormatter, TextFormatter
from tests.gateway.conftest import ClientOf, keys_of_clients
from tests.support.runs_by_hand import RunByHand
from tests.support.socket_server import serving

RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"
CLOSED = 0
SOON_S = 5.0
GROWTH_MAX_MIB = 96
BODY = b'{"user_prompt": "a"}'
HOST = b"Host: localhost\r\n"
GET = b"GET /healthz HTTP/1.1\r\n"
POST = b"POST /runs HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
END = b"\r\n"


def get(path: bytes, fields: bytes = b"") -> bytes:
    """Returns a GET request."""
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, fields)


def post(body: bytes, fields: bytes = b"") -> bytes:
    """Returns a POST /runs with a length."""
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (POST, fields, len(body), body)


def chunked(chunks: bytes, coding: bytes = b"chunked") -> bytes:
    """Returns a POST /runs in chunks."""
    return POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + chunks


CHUNK = b"14\r\n" + BODY + b"\r\n"
EVENTS = b"/runs/%b/events" % RUN.encode()

Row = tuple[str, bytes, *tuple[int, ...]]
ATTACKS: dict[str, list[Row]] = {
    "request lines": [
        ("not HTTP", b"\0\0\0\0\r\n\r\n", 400, CLOSED),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, CLOSED),
        ("HTTP/0.9", b"GET /\r\n\r\n", 505, CLOSED),
        ("HTTP/1.2", GET.replace(b"1.1", b"1.2") + HOST + END, 400, CLOSED),
        ("HTTP/2.0", GET.replace(b"1.1", b"2.0") + HOST + END, 505, CLOSED),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, CLOSED),
        ("lower case", b"get /healthz HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("unknown method", b"FOO / HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("TRACE echoes nothing", b"TRACE / HTTP/1.1\r\n" + HOST + END, 405),
        ("CONNECT is no proxy", b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("CONNECT to a path", b"CONNECT /runs HTTP/1.1\r\n" + HOST + END, 405),
        ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + HOST + END, 404),
        ("absolute target", b"GET http://localhost/healthz HTTP/1.1\r\n" + HOST + END, 200),
        ("target of another host", b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("target of another scheme", b"GET ftp://localhost/ HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("target without a slash", b"GET healthz HTTP/1.1\r\n" + HOST + END, 400, CLOSED),
        ("bare line feeds", b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 400, CLOSED),
        ("bare carriage returns", b"GET /healthz HTTP/1.1\rHost: localhost\r\r", 400, CLOSED),
        ("10,000 empty lines", END * 10_000 + GET + HOST + END, 200),
    ],
    "hosts": [
        ("none", GET + END, 400, CLOSED),
        ("none in HTTP/1.0", GET.replace(b"1.1", b"1.0") + END, 200, CLOSED),
        ("two", GET + HOST + b"Host: evil.example\r\n\r\n", 400, CLOSED),
        ("two in HTTP/1.0", GET.replace(b"1.1", b"1.0") + HOST * 2 + END, 400, CLOSED),
        *(
            (repr(host), GET + b"Host: " + host + b"\r\n\r\n", 400, CLOSED)
            for host in (b"localhost@evil.example", b"localhost/x", b"localhost evil", b"localhost, evil", b"evil#localhost",
                         b"localhost\\evil", b"localhost:99999999", b"a:b:c", b"[::1", b"\xe9", b"localhost?")
        ),
        ("foreign", get(b"/runs").replace(b"localhost", b"evil.example"), 403),
        ("foreign, for a local one", get(b"/runs").replace(b"localhost", b"localhost.evil.example"), 403),
    ],
    "header fields": [
        ("name with a space", GET + b"Host : localhost\r\n\r\n", 400, CLOSED),
        ("empty name", GET + HOST + b": x\r\n\r\n", 400, CLOSED),
        ("no colon", GET + HOST + b"abc\r\n\r\n", 400, CLOSED),
        ("folded", GET + HOST + b"X: a\r\n b\r\n\r\n", 400, CLOSED),
        ("folded by a line feed", GET + HOST + b"X: a\n b\r\n\r\n", 400, CLOSED),
        ("carriage return", GET + HOST + b"X: a\rb\r\n\r\n", 400, CLOSED),
        ("NUL", GET + HOST + b"X: a\0b\r\n\r\n", 400, CLOSED),
        ("DEL", GET + HOST + b"X: a\x7fb\r\n\r\n", 400, CLOSED),
        ("10,000 short ones", GET + HOST + b"a:\r\n" * 10_000 + END, 200),
        ("64 KiB", GET + HOST + b"X: " + b"x" * 2**16 + b"\r\n\r\n", 431, CLOSED),
        ("60,000 spaces", get(b"/runs", b"Accept: " + b" " * 60_000 + b"x\r\n"), 200),
        ("a thousand media types", get(b"/runs", b"Accept: " + b"a/b;q=0.1," * 1000 + END), 200),
        ("a thousand codings", get(b"/", b"Accept-Encoding: " + b"gzip;q=0.1," * 1000 + END), 200),
        ("a thousand parameters", POST.replace(b"json", b"json" + b";a=b" * 1000) + b"Content-Length: 20\r\n\r\n" + BODY, 202),
        ("a thousand ranges", get(b"/static/app.js", b"Range: bytes=0-0" + b",0-0" * 1000 + END), 200),
        ("a thousand tags", get(b"/static/app.js", b"If-None-Match: " + b'"a",' * 1000 + END), 200),
        ("a date of digits", get(b"/static/app.js", b"If-Modified-Since: " + b"9" * 5000 + END), 200),
        ("a trace of parts", get(b"/healthz", b"traceparent: " + b"00-" * 5000 + END), 200),
        ("a forwarded scheme", get(b"/", b"X-Forwarded-Proto: javascript\r\nX-Forwarded-Host: evil.example\r\n"), 200),
        *(
            (f"forwarded for {value!r}", get(b"/healthz", b"X-Forwarded-For: " + value + END), 200)
            for value in (b"junk", b"[::1", b"unknown", b"1.2.3.4:99999999", b"\xe9", b",,,", b"1," * 5000)
        ),
    ],
    "request smuggling": [
        *(
            (f"length {value!r}", POST + b"Content-Length: " + value + b"\r\n\r\n" + BODY, 400, CLOSED)
            for value in (b"+20", b"0x14", b"20,20", b"20, 5", b"", b"2 0", b"2_0", b"-1", b"20\r\nContent-Length: 20", b"9" * 30)
        ),
        ("length and chunks", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, CLOSED),
        ("chunks and length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, CLOSED),
        ("chunks in HTTP/1.0", chunked(b"0\r\n\r\n").replace(b"1.1", b"1.0"), 400, CLOSED),
        ("coding with a space before the colon", chunked(b"0\r\n\r\n").replace(b"ding:", b"ding :"), 400, CLOSED),
        *(
            (f"coding {value!r}", chunked(CHUNK + b"0\r\n\r\n", value), 501, CLOSED)
            for value in (b"identity", b"gzip, chunked", b",chunked", b"xchunked", b'"chunked"')
        ),
        *(
            (f"coding {value!r}", chunked(CHUNK + b"0\r\n\r\n", value), 400, CLOSED)
            for value in (b"chunked, identity", b"chunked, chunked", b"\x0bchunked", b"", b"chunked\r\nTransfer-Encoding: x")
        ),
        ("coding in upper case", chunked(CHUNK + b"0\r\n\r\n", b"CHUNKED"), 202),
        ("a request in a body", get(b"/healthz", b"Content-Length: 41\r\n") + get(b"/metrics", b"A: b\r\n"), 200),
        ("a request after the last", get(b"/healthz", b"Connection: close\r\n") + get(b"/metrics"), 200, CLOSED),
        ("bytes after a body", post(BODY) + b"\0\0GET /metrics", 202, CLOSED),
    ],
    "chunks and trailers": [
        *(
            (repr(chunks[:30]), chunked(chunks), 400, CLOSED)
            for chunks in (b"-1\r\n", b"+14\r\n" + BODY, b"0x14\r\n" + BODY, b" 14\r\n", b"14 \r\n", b"\r\n" + BODY, b"zz\r\n",
                           b"14\n" + BODY + b"\n0\n\n", b"14\r\n" + BODY + b"0\r\n\r\n", b"14;a\nb\r\n", b"f" * 20 + b"\r\n",
                           CHUNK + b"0\r\nContent-Length: 5\r\n\r\n", CHUNK + b"0\r\nX: \0\r\n\r\n", CHUNK + b"0\r\n X: a\r\n\r\n",
                           CHUNK + b"0\r\nTransfer-Encoding: chunked\r\n\r\n")
        ),
        ("zeros", chunked(b"0" * 200 + CHUNK + b"0\r\n\r\n"), 202),
        ("extension", chunked(b'14;a="b"\r\n' + BODY + b"\r\n0;c\r\n\r\n"), 202),
        ("trailers are dropped", chunked(CHUNK + b"0\r\nHost: evil\r\nIdempotency-Key: a b\r\n\r\n"), 202),
        ("50,000 chunks of a byte", chunked(b"1\r\n \r\n" * 50_000 + CHUNK + b"0\r\n\r\n"), 202),
        ("endless extension", chunked(b"1;" + b"x" * 2**20), 431, CLOSED),
        ("endless trailer", chunked(CHUNK + b"0\r\nX: " + b"x" * 2**20), 431, CLOSED),
    ],
    "pipelines and upgrades": [
        ("16", get(b"/healthz") * 16, *[200] * 16),
        ("1,000", get(b"/healthz") * 1000, *[200] * 17, CLOSED),
        ("a bad one behind a good one", get(b"/healthz") + b"\0\0", 200, CLOSED),
        ("WebSocket", get(b"/healthz", b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), 200),
        ("HTTP/2 fifty times", get(b"/healthz", b"Connection: Upgrade\r\n" + b"Upgrade: h2c\r\n" * 50), 200),
        ("upgrades behind each other", get(b"/healthz", b"Connection: Upgrade\r\nUpgrade: h2c\r\n") * 15, *[200] * 15),
        ("upgrade to a tunnel", b"CONNECT / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 405),
        ("upgrade with another host", get(b"/healthz", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost: evil\r\n"), 400, CLOSED),
        ("unknown expectation", post(BODY, b"Expect: 200-ok\r\n"), 202),
    ],
    "cookies, cursors and origins": [
        ("a thousand cookies", get(b"/session", b"Cookie: " + b"; ".join([b"a=b"] * 1000) + END), 200),
        ("cookie lines", get(b"/session", b"Cookie: stagebus=x\r\n" * 500), 200),
        ("junk cookies", get(b"/session", b'Cookie: =; ==; "; stagebus="\\"; $Version=1; \xff=\xff\r\n'), 200),
        ("backslashes", get(b"/session", b'Cookie: stagebus="' + b"\\" * 20_000 + END), 200),
        ("two cursors", get(EVENTS, b"Last-Event-ID: 0-1\r\nLast-Event-ID: 0-2\r\n"), 404),
        ("a list of cursors", get(EVENTS, b"Last-Event-ID: " + b"0-1," * 5000 + END), 400),
        ("a cursor in wide digits", get(EVENTS, "Last-Event-ID: \uff10-\uff11\r\n".encode()), 400),
        ("a foreign origin", post(BODY, b"Origin: http://evil.example\r\n"), 403),
        ("a foreign site", post(BODY, b"Sec-Fetch-Site: cross-site\r\n"), 403),
        ("the origin null", post(BODY, b"Origin: null\r\n"), 403),
        ("a preflight of thousands", b"OPTIONS /runs HTTP/1.1\r\n" + HOST + b"Origin: http://a\r\nAccess-Control-Request-Method: POST\r\n"
         b"Access-Control-Request-Headers: " + b"x," * 5000 + b"\r\n\r\n", 204),
    ],
    "paths": [
        *(
            (repr(path[:40]), get(path), 404)
            for path in (b"//evil.example/", b"//evil.example/%2e%2e", b"/\\evil.example", b"/runs/", b"/static", b"/static//etc/passwd",
                         b"/static/app.js%00.html", b"/static/%252e%252e/x", b"/runs/%2e%2e%2f%2e%2e/x", b"/healthz;x=1", b"/runs/%zz",
                         b"/runs/%", b"/" + b"a" * 9000, b"/" * 9000, b"/runs/" + b"%41" * 5000, b"/static/" + b"../" * 3000,
                         b"/runs/%b/stages/%%0a/events" % RUN.encode())
        ),
        ("a call id of steps up", get(b"/runs/%b/approvals/%b" % (RUN.encode(), b"%2e%2e/" * 2000)), 405),
        ("bytes beyond ASCII", get("/runs/\U0001f600".encode()), 400, CLOSED),
        ("200 KiB", get(b"/" + b"a" * 200_000), 431, CLOSED),
    ],
    "queries": [
        ("7,000 fields", get(b"/runs?" + b"a=b&" * 7000), 200),
        ("30,000 separators", get(b"/runs?" + b"&" * 30_000), 200),
        ("30,000 equals signs", get(b"/runs?" + b"=" * 30_000), 200),
        ("1,500 filters", get(b"/runs?" + b"&".join(b"metadata.%d=1" % n for n in range(1500))), 422),
        ("half an escape", get(b"/runs?status=%"), 422),
        *(
            (f"wait {value!r}", get(EVENTS + b"?wait=" + value, b"Accept: application/json\r\n"), 422)
            for value in (b"1e9", b"-1", b"NaN", b"9" * 9000, b"%D9%A3", b"1.5", b"0x1")
        ),
        ("60 KiB", get(b"/runs?" + b"a=b&" * 15_000), 431, CLOSED),
        ("two limits", get(b"/runs?limit=1;limit=2"), 422),
        ("tickets", get(EVENTS + b"?ticket=" + b"a." * 9000), 404),
        ("two tickets", get(EVENTS + b"?ticket=%00&ticket=x"), 404),
        ("two cursors", get(EVENTS + b"?last_event_id=0-1&last_event_id=9-9"), 404),
    ],
    "JSON": [
        *(
            (repr(body[:40]), post(body), 400)
            for body in (b"", b"[" * 200_000, b'{"a":' * 100_000, b'{"temperature":' + b"9" * 200_000 + b"}", BODY * 2, BODY + b"\0",
                         b"{" + b",".join(b'"%d":1' % n for n in range(60_000)) + b"}", b'{"messages":[' + b"1," * 300_000 + b"1]}",
                         b"{" + b'"user_prompt":"a",' * 30_000 + b'"user_prompt":"b"}', b"\xef\xbb\xbf" + BODY, b"/*x*/" + BODY,
                         BODY.decode().encode("utf-16"), b'{"user_prompt":"a","temperature":NaN}')
        ),
        ("escapes", post(b'{"user_prompt":"' + b"\\u0041" * 100_000 + b'"}'), 202),
        ("spaces", post(b" " * 900_000 + BODY), 202),
        ("too long", post(b'{"user_prompt":"' + b"a" * 5_000_000 + b'"}'), 413),
        ("too long in chunks", chunked(b"100000\r\n" + b" " * 2**20 + b"\r\n" + b"100000\r\n" + b" " * 2**20 + b"\r\n"), 413),
        ("another type", POST.replace(b"application/json", b"\xff/\xff") + b"Content-Length: 20\r\n\r\n" + BODY, 415),
        ("gzip bomb", post(b"\x1f\x8b\x08\0", b"Content-Encoding: gzip\r\n"), 415),
    ],
}  # fmt: skip
CREDENTIALS: list[Row] = [
    *(
        (repr(value[:40]), get(b"/runs", b"Authorization: " + value + END), 401)
        for value in (b"", b"Basic YTpi", b"Bearer", b"Bearer \xff", b"Bearer a.b.c", b"Bearer " + b"a." * 9000, b"Bearer" + b" " * 9000,
                      b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", b"Bearer a\r\nAuthorization: Bearer b", b"Bearer sbk_" + b"0" * 5000)
    ),
    *(
        (f"ticket {value[:40]!r}", get(EVENTS + b"?ticket=" + value), 401)
        for value in (b"", b"%00", b"a.b", b"a." * 9000, b"%ff%fe", b"x&ticket=y", b"%0d%0aX-Evil:%20yes", b"=" * 9000)
    ),
    *(
        (f"cookie {value[:40]!r}", get(b"/runs", b"Cookie: stagebus=" + value + END), 401)
        for value in (b"", b"a.b", b'"\\"', b"a.b; stagebus=c.d", b"\xff", b"." * 9000)
    ),
    ("metrics", get(b"/metrics"), 401),
    ("metrics behind an escape", get(b"/%6detrics"), 401),
    ("metrics behind a line feed", get(b"/metrics%0a"), 404),
    ("metrics behind a dot", get(b"/./metrics"), 404),
]  # fmt: skip
SLOW = {
    "head": (GET + HOST, b"X: y\r\n"),
    "header without an end": (GET + HOST + b"X: ", b"y"),
    "request line": (b"GET /", b"a"),
    "empty lines": (END, END),
    "body": (POST + b"Content-Length: 20000\r\n\r\n", b" "),
    "chunks": (chunked(b""), b"1\r\n \r\n"),
    "extension": (chunked(b"1;"), b"a"),
    "trailers": (chunked(CHUNK + b"0\r\n"), b"X: y\r\n"),
    "the second request": (GET + HOST + END + GET, b"X: y\r\n"),
    "upgrade": (GET + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"X: y\r\n"),
}


async def seen_by(address: tuple[str, int], sent: bytes, wanted: tuple[int, ...]) -> tuple[int | str, ...]:
    """Sends the bytes, and returns as many statuses as are wanted."""
    reader, writer = await asyncio.open_connection(*address)
    seen: list[int | str] = []
    writing = asyncio.create_task(send_all(writer, sent))
    try:
        async with asyncio.timeout(SOON_S):
            while len(seen) < len(wanted):
                seen.append(await read_status(reader, is_end=not wanted[len(seen)]))
    except TimeoutError:
        seen.append("nothing")
    finally:
        writing.cancel()
        writer.transport.abort()
    return tuple(seen)


async def send_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Writes until the other side has had enough."""
    try:
        for at in range(0, len(data), 2**16):
            writer.write(data[at : at + 2**16])
            await writer.drain()
    except ConnectionError:
        pass


async def read_status(reader: asyncio.StreamReader, *, is_end: bool) -> int | str:
    """Returns the status of the next response, or CLOSED. A refusal must be a problem, or close the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not is_end and "content-length: " in head:
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return CLOSED
    status = int(head.split()[1])
    if "x-evil" in head or (
        status >= 400 and "application/problem+json" not in head and "connection: close" not in head
    ):
        return head
    return status


async def repel(address: tuple[str, int], rows: list[Row]) -> None:
    """Runs each attack and checks that the gateway did what the row says, still answers, and has not grown."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = await asyncio.gather(*(seen_by(address, sent, wanted) for _, sent, *wanted in rows))

    assert {name: had for (name, _, *_wanted), had in zip(rows, seen, strict=True)} == {
        name: tuple(wanted) for name, _, *wanted in rows
    }
    assert await seen_by(address, GET + HOST + END, (200,)) == (200,)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < GROWTH_MAX_MIB


@pytest.mark.parametrize("kind", ATTACKS)
async def test_attack_is_repelled(app: Starlette, settings: Settings, kind: str) -> None:
    async with serving(app, settings) as address:
        await repel(address, ATTACKS[kind])


async def test_forged_credentials_are_refused(locked_app: Starlette, settings: Settings) -> None:
    async with serving(locked_app, settings) as address:
        await repel(address, CREDENTIALS)


async def test_slow_sender_loses_its_connection(app: Starlette, settings: Settings) -> None:
    """Each sends a little, time and again, so that no wait between two packets is long."""
    hasty = settings.model_copy(update={"headers_timeout_s": 0.3, "body_timeout_s": 0.5})

    async def send_slowly(first: bytes, more: bytes) -> float:
        started = time.monotonic()
        reader, writer = await asyncio.open_connection(*address)
        reading = asyncio.create_task(reader.read())
        writer.write(first)
        while not (reading.done() or writer.is_closing()) and time.monotonic() - started < SOON_S:
            await asyncio.sleep(0.05)
            writer.write(more)
        await asyncio.gather(reading, return_exceptions=True)
        writer.transport.abort()
        return time.monotonic() - started

    async with serving(app, hasty) as address:
        lasted = await asyncio.gather(*(send_slowly(*sent) for sent in SLOW.values()))

    assert [kind for kind, seconds in zip(SLOW, lasted, strict=True) if seconds > 3] == []


# --- hostile values at every endpoint, over ASGI ------------------------------

PARTS = [
    "%00", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2f..%2fpyproject.toml", "%2fetc%2fpasswd",
    "%0a", "%0d%0aX-Evil:%20yes", "%7b%7d", "*", "%ff", "%ed%a0%80", "%e2%80%a8", "%c0%ae%c0%ae/", "x" * 5000,
    "%5c..%5c..", "~", "%20", "static/..%2f..%2fserver.py", f"{RUN}%7d:stage:run", f"{RUN}%00",
]  # fmt: skip
PATHS = ["/static/{}", "/runs/{}", "/runs/{}/events", f"/runs/{RUN}/stages/{{}}/events", "/problems/{}", "/{}"]


def is_sane(response: httpx.Response) -> bool:
    """Returns whether the response is a problem with a 4xx status, without an injected header."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert "x-evil" not in response.headers
    assert response.json()["status"] == response.status_code
    return 400 <= response.status_code < 500


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part[:30])
async def test_hostile_path_is_refused_and_writes_no_key(api: httpx.AsyncClient, redis: Redis, part: str) -> None:
    for path in PATHS:
        for method in ("GET", "POST"):
            response = await api.request(method, path.format(part), headers={"Accept": "application/json"})
            assert is_sane(response)

    assert await keys_of_clients(redis) == []


@pytest.mark.parametrize("path", ["/", "/runs", "/metrics", "/static/app.js", "/openapi.json"])
async def test_path_with_a_trailing_control_character_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    """A proxy that blocks /metrics would let /metrics%0a pass."""
    assert (await api.get(path)).status_code == 200
    for end in ("%0a", "%0d", "%00", "%0a%0a"):
        assert (await api.get(path + end)).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        *({"Host": host} for host in ("[", "[::1", "a:b:c", "", "localhost:99999999", "é", "::", "@", "x" * 9000)),
        *({"Origin": origin, "Sec-Fetch-Site": origin} for origin in ("[", "null", "http://[", "é", "x" * 9000)),
        *({"Authorization": text} for text in ("", "Bearer", "Bearer ÿ", "Bearer a.b.c", f"Bearer {'a' * 9000}")),
        {"Authorization": f"Bearer sbk_000000000000_{'A' * 43}"},
        *({"Last-Event-ID": text} for text in ("é", "1-", f"0-{'9' * 500}", "1_0-1", "\u0663-\u0661", "x" * 9000)),
        *({"Idempotency-Key": text} for text in ("", "a b", "é", "x" * 256)),
        *({"Content-Encoding": text} for text in ("gzip", "br", "identity, gzip", "x" * 999)),
        {"Content-Length": "9" * 5000},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Accept": ",".join(["text/event-stream;q=" + "9" * 50] * 200)},
        {"X-Request-ID": "a\tb"},
        {"Range": "bytes=" + ",".join(["0-1"] * 3000), "If-None-Match": "*", "If-Modified-Since": "junk"},
    ],
    ids=lambda headers: str(headers)[:50],
)
async def test_hostile_header_gives_no_server_error(
    app: Starlette, api: httpx.AsyncClient, client_of: ClientOf, headers: dict[str, str]
) -> None:
    keyed = await client_of("t")
    raw = {name: value.encode() for name, value in headers.items()}
    for client in (api, keyed):
        for method, path in (("GET", "/runs"), ("GET", f"/runs/{RUN}/events"), ("GET", "/static/app.js")):
            assert (await client.request(method, path, headers=raw)).status_code < 500
        posted = await client.post("/runs", content=b"{}", headers=raw)
        assert is_sane(posted)
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", posted.headers["x-request-id"])


@pytest.mark.parametrize(
    "query",
    [
        "limit=1e999", f"limit={'9' * 500}", "limit=-1", "limit=%D9%A3", "limit=NaN", "before=%00", "before=*",
        f"before={'x' * 5000}", "last_event_id=%00", "last_event_id=1-1%0ax", f"last_event_id={'1' * 99}-1",
        "limit=0&%00=1&limit=%ff", "status=%00", "status=*", "model=%0a", f"q={'x' * 5000}", "metadata.=1", "metadata%00=1",
        f"metadata.{'k' * 5000}=1", "&".join(f"metadata.{n}=1" for n in range(500)),
    ],
)  # fmt: skip
async def test_hostile_query_is_refused(api: httpx.AsyncClient, run: RunByHand, query: str) -> None:
    path = f"/runs/{run.run_id}/events" if "last_event_id" in query else "/runs"

    assert is_sane(await api.get(f"{path}?{query}", headers={"Accept": "application/json"}))


HUGE = b"9" * 400
BODIES = [
    b'{"user_prompt": "a", "model": "\\n"}',
    b'{"user_prompt": "a", "model": "m\\u2028"}',
    b'{"user_prompt": "a", "model": {"$ne": 1}}',
    b'{"user_prompt": "a", "temperature": 1e400}',
    b'{"user_prompt": "a", "temperature": 1e30}',
    b'{"user_prompt": "a", "max_tokens": 1e30}',
    b'{"user_prompt": "a", "max_tokens": ' + HUGE + b"}",
    b'{"user_prompt": "a", "timeout_s": -1e-320}',
    b'{"user_prompt": "a", "timeout_s": 1e308}',
    b'{"user_prompt": "a", "max_rounds": true}',
    b'{"user_prompt": "a", "max_rounds": 1.0}',
    b'{"user_prompt": "a", "tools": ["*"]}',
    b'{"user_prompt": "a", "tools": ["a\\u0000"]}',
    b'{"user_prompt": "a", "tool_choice": "a{b}"}',
    b'{"user_prompt": "a", "tool_choice": {"type": "function", "function": {"name": "a\\n"}}}',
    b'{"user_prompt": "a", "metadata": {"a": 1}}',
    b'{"user_prompt": "a", "metadata": {"__proto__": {"a": "b"}}}',
    b'{"user_prompt": "a", "__class__": "x"}',
    b'{"user_prompt": "\xed\xa0\x80"}',
    b'{"user_prompt": "\\ud800"}',
    b'{"messages": [{"role": "system\\u0000", "content": "x"}]}',
    b'{"messages": [' + b'{"role": "user", "content": "x"},' * 1000 + b'{"role": "user", "content": "x"}]}',
    b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"a": 1, "a": 2}',
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:60].decode(errors="replace"))
async def test_hostile_body_is_refused_and_creates_nothing(api: httpx.AsyncClient, redis: Redis, body: bytes) -> None:
    assert is_sane(await api.post("/runs", content=body))
    assert await keys_of_clients(redis) == []


BOMBS = (
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"{" + b",".join(b'"%d":1' % n for n in range(60_000)) + b"}",
    b'{"messages":[' + b'{"role":"user","parts":[]},' * 20_000 + b"1]}",
    b'{"input":"\\ud800"}',
    b'{"a":NaN}',
)


WITH_BODY = {"POST", "PATCH", "PUT"}


def path_of(endpoint: Endpoint) -> str:
    """Returns a path of the endpoint, with a run's id for each of its parameters."""
    return re.sub(r"\{\w+\}", RUN, endpoint.path_template)


async def test_json_bomb_is_refused_at_every_endpoint_that_reads_a_body(api: httpx.AsyncClient, redis: Redis) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.method not in WITH_BODY or endpoint.path_template == "/session":
            continue
        path = path_of(endpoint)
        for bomb in BOMBS:
            answer = await api.request(
                endpoint.method, path, content=bomb, headers={"Content-Type": "application/json"}
            )
            assert 400 <= answer.status_code < 500, (path, bomb[:20], answer.text[:200])

    assert await keys_of_clients(redis) == []


async def test_integer_beyond_64_bits_is_no_server_error_at_any_endpoint(api: httpx.AsyncClient) -> None:
    """Each view ignores the fields of the others. Accepted runs wait for a worker, so their streams are left."""
    message = {
        "id": "m",
        "role": "user",
        "content": "x",
        "parts": [{"type": "text", "text": "x", "n": 2**70}],
        "n": 2**70,
    }
    body = {
        "threadId": "t",
        "runId": "r",
        "id": RUN,
        "messages": [message],
        "input": [message],
        "model": "m",
        "n": 2**70,
    }
    for endpoint in ENDPOINTS:
        if endpoint.method not in WITH_BODY:
            continue
        path = path_of(endpoint)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                assert (await api.request(endpoint.method, path, json=body)).status_code < 500, path


@pytest.mark.parametrize("key", ["{x}", "*", "a:b", "sb:run:{" + RUN + "}", "../..", "[a]", "?", "\\", '"' * 255])
async def test_idempotency_key_cannot_escape_its_redis_key(api: httpx.AsyncClient, redis: Redis, key: str) -> None:
    made = [(await api.post("/runs", json={"user_prompt": "a"}, headers={"Idempotency-Key": key})) for _ in range(2)]

    assert made[0].json()["id"] == made[1].json()["id"]
    assert await redis.exists(f"sb:idempotency:default:{key}") == 1
    assert len([name async for name in redis.scan_iter("sb:run:*", count=100)]) == 3, "record, stages and journal"


EVIL = (
    "\n\nid: 9-9\nevent: done\ndata: {}\n\n", "\r\n\r\ndata: x\r\n\r\n", "\r", "\0", "\u2028\u2029\x85\x0b\x0c\x1c",
    ": ping\n\n", "retry: 1\n\n", "\ufeff", "</script><script>alert(1)</script>", "\x1b[31m", "%s{}${x}", "'\"\\",
    "😊" * 3,
)  # fmt: skip


def events_with(text: str) -> list[Event]:
    """Returns events with the text in every field that models, tools, providers and workers can write."""
    outcome = ToolOutcome(call_id=text, name=text, arguments=text, content=text)
    chunk = {"id": text, "model": text, "choices": [{"index": 0, "delta": {text: text, "content": text}}]}
    return [
        RunStarted(attempt=1, worker=text),
        StageStarted(stage_id="extraction", attempt=1),
        ToolCompletionChunk(stage_id="extraction", tool_results=chunk),
        RetryScheduled(retry_of="extraction", retry=1, backoff_s=1.5, reason=text),
        StageCompleted(stage_id="extraction", result={"text": text, text: [text]}),
        ToolCall(stage_id="tools", call_id=text, name=text, arguments=text),
        ToolResult(stage_id="tools", call_id=text, name=text, content=text),
        ToolSummary(stage_id="tools", tool_summary=[outcome]),
    ]


def parse_strictly(body: bytes) -> list[tuple[str, str, Any]]:
    """Parses SSE as a browser does: lines end in CR LF, LF or CR, and in nothing else."""
    lines = re.split(rb"\r\n|\n|\r", body)
    frames, fields = [], {}
    for line in lines:
        name, _, value = line.partition(b": ")
        if not line:
            if b"data" in fields:
                data = orjson.loads(fields[b"data"])
                frames.append((fields[b"id"].decode(), fields[b"event"].decode(), data))
            fields = {}
        elif name in (b"id", b"event", b"data"):
            assert name not in fields, "one line per field"
            fields[name] = value
        else:
            assert name in (b"retry", b""), line
    return frames


@pytest.mark.parametrize("text", EVIL, ids=repr)
async def test_hostile_text_cannot_break_an_sse_frame(api: httpx.AsyncClient, run: RunByHand, text: str) -> None:
    put, end = events_with(text), Error(error=text, code="internal")
    await run.put(*put)
    await run.end(end)
    merged = await api.get(f"/runs/{run.run_id}/events")
    full = await api.get(f"/runs/{run.run_id}/events?chunks=full")
    page = (await api.get(f"/runs/{run.run_id}/events", headers={"Accept": "application/json"})).json()

    frames = parse_strictly(merged.content)
    assert [(name, {**data, "at": 0}) for _, name, data in frames[1:]] == [
        (event.event, {**orjson.loads(event.data()), "at": 0}) for event in [*put, end]
    ]
    assert [frame[0] for frame in frames] == [event["id"] for event in page["events"]]
    assert [frame[2] for frame in frames] == [event["data"] for event in page["events"]]
    assert [frame[:2] for frame in parse_strictly(full.content)] == [frame[:2] for frame in frames]


@pytest.mark.parametrize("text", EVIL, ids=repr)
async def test_hostile_text_cannot_start_a_log_line(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.DEBUG)
    await api.get(f"/{httpx.URL('/', params={'x': text}).query.decode()[2:]}", headers={"User-Agent": "x"})
    records = [record for record in caplog.records if record.name == "stagebus.access"]

    assert len(records) == 1
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(records[0])
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
