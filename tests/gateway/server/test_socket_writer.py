"""Detached streams on our own server: their memory, and other requests on their connections."""

import asyncio
import gc
import socket
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette

from stagebus.gateway.context import Gateway
from stagebus.gateway.server.socket_writer import SocketWriter
from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.log import log_reader
from stagebus.shared.observability.logging import fields_of
from tests.support.runs_by_hand import RunByHand
from tests.support.socket_server import serving
from tests.support.waiting import until, until_equal

SOON_S = 10.0
STREAM_MAX_BYTES = 16 * 2**10
STREAMS = 100


@pytest.fixture
async def address(app: Starlette, settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """The address of the app, served by our connection class in this process."""
    async with serving(app, settings) as address:
        yield address


@pytest.fixture
def hub(app: Starlette) -> Hub:
    gateway: Gateway = app.state.gateway
    return gateway.hub


class Browser:
    """A bare socket that requests streams."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.received = b""

    async def ask(self, path: str, version: str = "1.1") -> None:
        head = f"GET {path} HTTP/{version}\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(self.socket, head.encode())

    async def to_the_end(self) -> bytes:
        """Reads until the connection is closed, and returns everything."""
        async with asyncio.timeout(SOON_S):
            while data := await asyncio.get_running_loop().sock_recv(self.socket, 2**16):
                self.received += data
        return self.received

    async def until(self, text: bytes) -> None:
        """Reads until the text has arrived; keeps what follows it."""
        async with asyncio.timeout(SOON_S):
            while text not in self.received:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 2**16)
                assert data, "the connection is closed"
                self.received += data
        self.received = self.received.partition(text)[2]


Connect = Callable[[], Browser]


@pytest.fixture
def connect(address: tuple[str, int]) -> Iterator[Connect]:
    browsers: list[Browser] = []

    def connect() -> Browser:
        browsers.append(Browser(address))
        return browsers[-1]

    yield connect
    for browser in browsers:
        browser.socket.close()


def events_of(run: RunByHand) -> str:
    return f"/runs/{run.run_id}/events"


async def test_http_1_0_stream_is_not_chunked_and_ends_with_the_connection(connect: Connect, run: RunByHand) -> None:
    """Old proxies send HTTP/1.0, some by default."""
    browser = connect()
    await browser.ask(events_of(run), version="1.0")
    await run.say("live")
    await run.end()
    head, _, body = (await browser.to_the_end()).partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head.lower()
    assert b"\r" not in body
    assert body.startswith(b"retry: ")
    assert [line for line in body.split(b"\n") if line.startswith(b"event: ")] == [
        b"event: run_queued", b"event: tool_completion_chunk", b"event: done",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/healthz", "/runs/nope"])
async def test_http_1_0_response_has_a_content_length(connect: Connect, path: str) -> None:
    browser = connect()
    await browser.ask(path, version="1.0")
    head, _, body = (await browser.to_the_end()).partition(b"\r\n\r\n")

    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
    assert body.startswith(b"{")


async def test_connection_is_reused_after_a_stream(connect: Connect, run: RunByHand) -> None:
    browser = connect()
    await browser.ask(events_of(run))
    await browser.until(b"event: run_queued")
    await run.end()
    await browser.until(b"event: done")
    await browser.until(b"\r\n0\r\n\r\n")
    await browser.ask("/healthz")
    await browser.until(b'{"status":"ok"}')


async def test_pipelined_request_is_answered_after_the_stream(connect: Connect, run: RunByHand) -> None:
    browser = connect()
    await browser.ask(events_of(run))
    await browser.until(b"event: run_queued")
    await browser.ask("/healthz")
    await run.begin("extraction")
    await browser.until(b"event: stage_started")
    await run.end()
    await browser.until(b"event: done")
    await browser.until(b"\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_unread_request_body_does_not_block_the_stream(connect: Connect, run: RunByHand) -> None:
    browser, loop = connect(), asyncio.get_running_loop()
    length = 2**18
    head = f"GET {events_of(run)} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nContent-Length: {length}\r\n\r\n"
    await loop.sock_sendall(browser.socket, head.encode())
    await browser.until(b"event: run_queued")
    await loop.sock_sendall(browser.socket, b" " * length)
    await run.end()
    await browser.until(b"event: done")
    await browser.until(b"\r\n0\r\n\r\n")


async def test_access_log_line_of_a_stream_is_written_at_its_end(
    connect: Connect, run: RunByHand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stagebus.access")
    browser = connect()
    await browser.ask(events_of(run))
    await browser.until(b"event: run_queued")
    assert not [record for record in caplog.records if record.name == "stagebus.access"]
    browser.socket.close()
    (line,) = await until(lambda: [record for record in caplog.records if record.name == "stagebus.access"])
    fields = fields_of(line)

    assert (fields["method"], fields["path"], fields["status"]) == ("GET", events_of(run), 200)
    assert fields["bytes"] > len(b"event: run_queued")
    assert (fields["subject"], fields["tenant"]) == ("anyone", "default")


async def test_quiet_stream_gets_pings_and_later_events(connect: Connect, run: RunByHand, hub: Hub) -> None:
    hub._settings = hub._settings.model_copy(update={"ping_s": 0.1})
    browser = connect()
    await browser.ask(events_of(run))
    await browser.until(b"event: run_queued")
    for _ in range(2):
        await browser.until(b"8\r\n: ping\n\n\r\n")
    await run.end()
    await browser.until(b"event: done")
    await browser.until(b"\r\n0\r\n\r\n")


async def test_disconnect_before_the_stream_begins_closes_it(
    connect: Connect, run: RunByHand, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disconnect reaches the writer before the app has detached the stream."""
    asked, may_answer, disconnected, closed = (asyncio.Event() for _ in range(4))
    read_head, disconnect, close = log_reader.read_head, SocketWriter.disconnect, ClientStream.close

    async def read_head_late(*args: Any) -> log_reader.Head:
        asked.set()
        await may_answer.wait()
        return await read_head(*args)

    monkeypatch.setattr(log_reader, "read_head", read_head_late)
    monkeypatch.setattr(SocketWriter, "disconnect", _and_then(disconnect, disconnected.set))
    monkeypatch.setattr(ClientStream, "close", _and_then(close, closed.set))
    browser = connect()
    await browser.ask(events_of(run))
    async with asyncio.timeout(SOON_S):
        await asked.wait()
        browser.socket.close()
        await disconnected.wait()
        may_answer.set()
        await closed.wait()

    await until_equal(lambda: hub.open_streams, 0)


def _and_then(first: Callable[[Any], None], then: Callable[[], None]) -> Callable[[Any], None]:
    def both(subject: Any) -> None:
        first(subject)
        then()

    return both


async def test_ended_stream_leaves_no_reference_cycle(connect: Connect, run: RunByHand, hub: Hub) -> None:
    """A cycle would stay until the collector looks at frozen objects."""
    browser = connect()
    await browser.ask(events_of(run))
    await browser.until(b"event: run_queued")
    (stream,) = hub._all_streams()
    held = [weakref.ref(held) for held in (stream.writer._protocol, stream.writer)]
    del stream
    gc.collect()
    gc.disable()
    try:
        browser.socket.close()
        await until_equal(lambda: hub.open_streams, 0)
        await until(lambda: all(ref() is None for ref in held))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("path", "opening"),
    [
        ("/runs/{}/events", b"event: run_queued"),
        ("/v1/responses/resp_{}?stream=true", b"event: response.queued"),
        ("/durable/runs/{}?offset=-1&live=sse", b"event: control"),
    ],
)
async def test_open_stream_uses_at_most_16_kib(
    connect: Connect, run: RunByHand, hub: Hub, path: str, opening: bytes
) -> None:
    """Measures Python's own memory; the clients are bare sockets."""
    first = connect()  # creates what all streams share
    await first.ask(path.format(run.run_id))
    await until_equal(lambda: hub.open_streams, 1)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        browsers = [connect() for _ in range(STREAMS)]
        for browser in browsers:
            await browser.ask(path.format(run.run_id))
            await browser.until(opening)
            browser.received = b""
        await until_equal(lambda: hub.open_streams, STREAMS + 1)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (after - before) / STREAMS <= STREAM_MAX_BYTES
