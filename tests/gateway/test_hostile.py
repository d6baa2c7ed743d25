"""Hostile input at every endpoint: nothing breaks, nothing escapes its context, nothing is created."""

import logging
import re
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.shared.domain.events import (
    Error,
    Event,
    RetryScheduled,
    RunStarted,
    StageCompleted,
    StageStarted,
    ToolCall,
    ToolCompletionChunk,
    ToolOutcome,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.observability.logging import JsonFormatter, TextFormatter
from tests.gateway.conftest import ClientOf, keys_of_clients
from tests.support.runs_by_hand import RunByHand

RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"
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
