"""The app's start, and the app inside another one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Mount

from stagebus.gateway.app import create_app, mount_gateway
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageUnfit
from tests.gateway.conftest import client
from tests.support.runs_by_hand import RunByHand


async def test_start_fails_on_unsuitable_redis(redis: Redis, settings: Settings) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    app = create_app(settings)
    try:
        with pytest.raises(StorageUnfit, match="noeviction"):
            async with app.router.lifespan_context(app):
                pass
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_start_fails_on_unreachable_redis() -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))

    with pytest.raises(StorageUnfit, match="STAGEBUS_REDIS_URL"):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize("path", ["/runs", "/healthz", "/readyz", "/models", "/runs/x/events", "/nowhere", "/"])
async def test_mounted_app_without_its_lifespan_answers_503(settings: Settings, path: str) -> None:
    host = Starlette(routes=[Mount("/ai", create_app(settings))])
    async with client(host) as http, host.router.lifespan_context(host):
        response = await http.get(f"/ai{path}", headers={"Accept": "text/event-stream, */*"})

    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "lifespan_not_entered"
    assert "mount_gateway" in problem["detail"]
    assert "docs/embedding.md" in problem["detail"]


async def test_problem_of_a_mounted_app_without_its_lifespan_is_explained_at_its_type(settings: Settings) -> None:
    host = Starlette(routes=[Mount("/ai", create_app(settings))])
    async with client(host) as http, host.router.lifespan_context(host):
        explained = await http.get((await http.get("/ai/runs")).json()["type"])
        unknown = await http.get("/ai/problems/nope")

    assert explained.status_code == 200
    assert explained.json()["code"] == "lifespan_not_entered"
    assert "does not enter the gateway's lifespan" in explained.json()["description"]
    assert "mount_gateway" in explained.json()["description"]
    assert unknown.status_code == 404


async def test_mounted_app_whose_lifespan_the_host_enters_works(settings: Settings, run: RunByHand) -> None:
    app = create_app(settings)

    @asynccontextmanager
    async def lifespan(_host: Starlette) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    host = Starlette(routes=[Mount("/ai", app)], lifespan=lifespan)
    await run.end()
    async with host.router.lifespan_context(host), client(host) as http:
        assert (await http.post("/ai/runs", json={"user_prompt": "Hello"})).status_code == 202
        stream = await http.get(f"/ai/runs/{run.run_id}/events", headers={"Accept": "text/event-stream"})

        assert "event: done\n" in stream.text
    async with client(host) as http:
        assert (await http.get("/ai/runs")).json()["code"] == "lifespan_not_entered", "the host has left it"


async def test_mount_gateway_runs_its_lifespan_within_the_host_s(settings: Settings) -> None:
    @asynccontextmanager
    async def lifespan(_host: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hello"}

    host = Starlette(lifespan=lifespan)
    app = mount_gateway(host, "/ai", settings)
    async with host.router.lifespan_context(host) as state, client(host) as http:
        assert (await http.get("/ai/healthz")).json() == {"status": "ok"}
        assert app.state.gateway.settings is settings

    assert state == {"greeting": "hello"}
    assert not hasattr(app.state, "gateway")
