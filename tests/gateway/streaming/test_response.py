"""The response on servers that have no stream writer, where sse-starlette carries it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from starlette.types import Message, Scope

from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.response import EventStream
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.gateway.streaming.views import RUN_EVENTS
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.log import sse
from stagebus.shared.storage import keys
from tests.support.redis_calls import subscriber_count
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until_equal

SOON_S = 5.0


class Admission:
    """Counts how often it was entered and left."""

    def __init__(self, *, is_admitted: bool = True) -> None:
        self._is_admitted = is_admitted
        self.entered = self.left = 0

    async def __aenter__(self) -> bool:
        self.entered += 1
        return self._is_admitted

    async def __aexit__(self, *_: object) -> None:
        self.left += 1


class Server:
    """The ASGI server's side of one request."""

    def __init__(self, response: EventStream, method: str = "GET") -> None:
        self.messages: list[Message] = []
        self.disconnect = asyncio.Event()
        self.is_taking = asyncio.Event()
        self.is_taking.set()
        self._has_new = asyncio.Condition()
        scope: Scope = {"type": "http", "method": method, "path": "/", "headers": [], "extensions": {}}
        self.task = asyncio.create_task(response(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.is_taking.wait()
        async with self._has_new:
            self.messages.append(message)
            self._has_new.notify_all()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def events(self) -> list[str]:
        return [frame.event for frame in sse.decode(self.body)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S), self._has_new:
            await self._has_new.wait_for(condition)

    async def until_end(self) -> None:
        await asyncio.wait_for(self.task, SOON_S)


@pytest.fixture
async def quick_hub(redis: Redis, settings: Settings) -> AsyncIterator[Hub]:
    """A hub that pings soon and has no time to drain."""
    hub = Hub(redis, settings.model_copy(update={"ping_s": 0.1, "drain_spread_s": 0.0}))
    await hub.start()
    yield hub
    await hub.stop()


@asynccontextmanager
async def serving(hub: Hub, run: RunByHand, admission: Admission, method: str = "GET") -> AsyncIterator[Server]:
    stream = hub.new_stream(run.run_id, START, RUN_EVENTS)
    server = Server(EventStream(hub, stream, admission), method)
    try:
        yield server
    finally:
        server.task.cancel()
        await asyncio.wait([server.task])


async def test_stream_is_sent_through_the_asgi_server(hub: Hub, run: RunByHand) -> None:
    admission = Admission()
    async with serving(hub, run, admission) as server:
        await server.until(lambda: server.events == ["run_queued"])
        assert (admission.entered, admission.left, hub.open_streams) == (1, 0, 1)
        await run.say("live")
        await run.end()
        await server.until_end()

    start, *body = server.messages
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
    assert headers[b"cache-control"] == b"no-cache, no-transform"
    assert body[0]["body"].startswith(b"retry: ")
    assert server.events == ["run_queued", "tool_completion_chunk", "done"]
    assert not body[-1]["more_body"]
    assert (admission.left, hub.open_streams) == (1, 0)


async def test_client_that_disconnects_releases_its_stream(redis: Redis, hub: Hub, run: RunByHand) -> None:
    admission = Admission()
    async with serving(hub, run, admission) as server:
        await server.until(lambda: server.events == ["run_queued"])
        server.disconnect.set()
        await server.until_end()

        assert (admission.left, hub.open_streams) == (1, 0)
        await until_equal(lambda: subscriber_count(redis, keys.live(run.run_id)), 0)


async def test_client_that_takes_nothing_releases_its_stream(redis: Redis, settings: Settings, run: RunByHand) -> None:
    hub, admission = Hub(redis, settings.model_copy(update={"write_timeout_s": 0.2})), Admission()
    await hub.start()
    async with serving(hub, run, admission) as server:
        await server.until(lambda: server.events == ["run_queued"])
        server.is_taking.clear()
        await run.say("live")
        await server.until_end()

        assert (admission.left, hub.open_streams) == (1, 0)
    await hub.stop()


async def test_quiet_stream_gets_the_hub_s_pings_and_no_others(quick_hub: Hub, run: RunByHand) -> None:
    async with serving(quick_hub, run, Admission()) as server:
        await server.until(lambda: server.body.count(b": ping\n\n") == 2)

    assert server.body.count(b"\n:") == 2


async def test_drain_ends_the_stream(quick_hub: Hub, run: RunByHand) -> None:
    admission = Admission()
    async with serving(quick_hub, run, admission) as server:
        await server.until(lambda: server.events == ["run_queued"])
        await quick_hub.drain()
        await server.until_end()

    assert server.events == ["run_queued"]
    assert admission.left == 1


async def test_refused_stream_tells_the_client_to_reconnect(hub: Hub, run: RunByHand) -> None:
    admission = Admission(is_admitted=False)
    async with serving(hub, run, admission) as server:
        await server.until_end()

    assert server.body == b"retry: 5000\n\n"
    assert (admission.left, hub.open_streams) == (1, 0)


async def test_head_request_opens_no_stream(hub: Hub, run: RunByHand) -> None:
    admission = Admission()
    async with serving(hub, run, admission, "HEAD") as server:
        await server.until_end()

    assert [message["type"] for message in server.messages] == ["http.response.start", "http.response.body"]
    assert server.body == b""
    assert admission.entered == 0


async def test_drain_tears_a_strict_stream(quick_hub: Hub, run: RunByHand) -> None:
    """Without the last part of the body, the server cuts the connection."""
    admission = Admission()
    stream = quick_hub.new_stream(run.run_id, START, RUN_EVENTS, is_strict=True)
    server = Server(await EventStream(quick_hub, stream, admission).open())
    await server.until(lambda: server.events == ["run_queued"])
    await quick_hub.drain()

    with pytest.raises(StreamTorn):
        await server.until_end()
    assert all(message["more_body"] for message in server.messages[1:])
    assert admission.left == 1
    with pytest.raises(TooManyStreams):
        await EventStream(quick_hub, stream, refusing := Admission(is_admitted=False)).open()
    assert refusing.left == 1
