"""Default headers of every response, and CORS."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from tests.gateway.conftest import client

APP = "https://app.example"
HELLO = {"user_prompt": "Hello"}


@pytest.fixture
async def shared_api(redis: Redis, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that allows one other origin."""
    app = create_app(settings.model_copy(update={"cors_origins": (APP,)}))
    async with app.router.lifespan_context(app), client(app) as api:
        yield api


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/runs", "/runs/x", "/nowhere", "/healthz", "/metrics"])
async def test_responses_have_security_headers(api: httpx.AsyncClient, path: str) -> None:
    headers = (await api.get(path)).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


async def test_stream_keeps_its_own_headers(api: httpx.AsyncClient) -> None:
    run_id = (await api.post("/runs", json=HELLO)).json()["id"]
    await api.post(f"/runs/{run_id}/cancel")

    headers = (await api.get(f"/runs/{run_id}/events", headers={"Origin": APP})).headers
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"


async def test_cors_allows_configured_origins_only(shared_api: httpx.AsyncClient) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = await shared_api.options("/runs", headers=asked)
    refused = await shared_api.options("/runs", headers={**asked, "Origin": "https://evil.example"})
    created = await shared_api.post("/runs", json=HELLO, headers={"Origin": APP})

    assert allowed.headers["access-control-allow-origin"] == APP
    assert "access-control-allow-credentials" not in allowed.headers
    assert "access-control-allow-origin" not in refused.headers
    assert created.status_code == 202
    assert created.headers["access-control-allow-origin"] == APP
    exposed = created.headers["access-control-expose-headers"]
    assert {"Location", "X-Run-Id", "Retry-After", "RateLimit", "RateLimit-Policy"} <= set(exposed.split(", "))
    foreign = await shared_api.post("/runs", json=HELLO, headers={"Origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")


@pytest.mark.parametrize("names", ["authorization", "baggage, sentry-trace, x-datadog-trace-id", "idempotency-key"])
async def test_cors_allows_the_headers_that_a_page_asks_for(shared_api: httpx.AsyncClient, names: str) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names}
    response = await shared_api.options("/runs", headers=asked)

    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == names
    assert "access-control-allow-credentials" not in response.headers


async def test_cors_does_not_buffer_a_stream(redis: Redis, settings: Settings) -> None:
    """Each frame is sent by itself."""
    app = create_app(settings.model_copy(update={"cors_origins": (APP,)}))
    async with app.router.lifespan_context(app), client(app) as api:
        run_id = (await api.post("/runs", json=HELLO)).json()["id"]
        await api.post(f"/runs/{run_id}/cancel")
        sent = await pieces(app, f"/runs/{run_id}/events")

    assert dict(sent[0]["headers"])[b"access-control-allow-origin"] == APP.encode()
    assert sent[1]["body"] == b"retry: 1000\n\n"
    assert b"event: cancel" in sent[2]["body"]


async def pieces(app: Starlette, path: str) -> list[dict]:
    """Returns all ASGI messages of a response."""
    sent, ended = [], asyncio.Event()

    async def receive() -> dict:
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"localhost"), (b"origin", APP.encode())], "server": ("127.0.0.1", 80),
             "client": ("127.0.0.1", 1), "scheme": "http", "http_version": "1.1", "root_path": ""}  # fmt: skip
    await app(scope, receive, send)
    return sent
