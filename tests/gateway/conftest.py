"""Fixtures: the app over ASGI, a hub, a run appended by hand, and a client of the hub."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, nullcontext, suppress

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.views import stored_view
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.tenants import TENANT_WIDE, Scope
from stagebus.shared.log import sse
from stagebus.shared.log.sse import Frame
from stagebus.shared.store import api_keys
from tests.support import runs_by_hand
from tests.support.runs_by_hand import RunByHand
from tests.support.socket_server import serving

SECRET = "a secret of the tests, long enough"

ClientOf = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def app(redis: Redis, settings: Settings) -> AsyncIterator[Starlette]:
    """The started gateway."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def api(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the app."""
    async with client(app) as api:
        yield api


@pytest.fixture
async def web(app: Starlette, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway's own server, which can read live streams."""
    async with (
        serving(app, settings) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=10) as web,
    ):
        yield web


@pytest.fixture
async def locked_app(redis: Redis, settings: Settings) -> AsyncIterator[Starlette]:
    """The started gateway, which requires a key."""
    app = create_app(settings.model_copy(update={"auth": "keys", "secret": SecretStr(SECRET)}))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client_of(locked_app: Starlette, redis: Redis) -> AsyncIterator[ClientOf]:
    """Makes clients of the locked gateway, each with its own key for a tenant and scopes."""
    async with AsyncExitStack() as stack:

        async def make(tenant: str, *scopes: Scope) -> httpx.AsyncClient:
            _, key = await api_keys.create(redis, tenant=tenant, scopes=scopes or TENANT_WIDE)
            return await stack.enter_async_context(client(locked_app, {"Authorization": f"Bearer {key}"}))

        yield make


@pytest.fixture
async def nowhere() -> AsyncIterator[Redis]:
    """A Redis that is down."""
    redis = Redis(host="127.0.0.1", port=1)
    yield redis
    await redis.aclose()


def client(app: Starlette, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    """Returns an HTTP client of the app. It cannot read live streams: this transport waits for the end of a body."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


async def keys_of_clients(redis: Redis) -> list[bytes]:
    """Returns all keys except those of the gateways themselves: their heartbeats and the sweep."""
    return [key for key in await redis.keys("*") if not key.startswith((b"sb:gateways", b"sb:sweep"))]


@pytest.fixture
async def hub(redis: Redis, settings: Settings) -> AsyncIterator[Hub]:
    hub = Hub(redis, settings)
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    run = await runs_by_hand.start(redis)
    yield run
    await runs_by_hand.stop(run)


class Watcher:
    """A client of one stream, which takes what the hub yields."""

    def __init__(self, hub: Hub, run_id: str, cursor: EventId = START, stage_id: str | None = None) -> None:
        self.received = b""
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self.stream = hub.new_stream(run_id, cursor, stored_view(stage_id), stage_id=stage_id)
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._watch(hub))

    async def _watch(self, hub: Hub) -> None:
        async with aclosing(hub.relay(self.stream, nullcontext(True))) as body:
            async for data in body:
                await self.is_reading.wait()
                async with self._changed:
                    self.received += data
                    self._changed.notify_all()

    @property
    def frames(self) -> list[Frame]:
        """The frames of the events so far, including gaps."""
        return list(sse.decode(self.received))

    @property
    def sequences(self) -> list[int]:
        """The sequences so far."""
        return [parse_id(frame.id).sequence for frame in self.frames if frame.id]

    async def until(self, condition: Callable[["Watcher"], bool], timeout_s: float = 10) -> "Watcher":
        """Waits for the condition."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))
        return self

    async def until_end(self, timeout_s: float = 10) -> "Watcher":
        """Waits until the hub ends the stream."""
        await asyncio.wait_for(asyncio.shield(self._task), timeout_s)
        return self

    async def stop(self) -> None:
        """Disconnects."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def watch(hub: Hub) -> AsyncIterator[Callable[..., Watcher]]:
    watchers: list[Watcher] = []

    def start(run_id: str, cursor: EventId = START, stage_id: str | None = None) -> Watcher:
        watchers.append(Watcher(hub, run_id, cursor, stage_id))
        return watchers[-1]

    yield start
    for watcher in watchers:
        await watcher.stop()
