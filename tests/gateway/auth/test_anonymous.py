"""The open gateway answers requests from its own machine, but no page of another site."""

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from tests.gateway.conftest import client

HELLO = {"user_prompt": "Hello"}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:8000"])
async def test_open_gateway_answers_local_host_names(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/runs", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7:8000"])
async def test_open_gateway_refuses_foreign_host_names(api: httpx.AsyncClient, host: str) -> None:
    """With DNS rebinding a site's own name resolves to this machine, and its pages could read the answers."""
    response = await api.get("/runs", headers={"Host": host})

    assert (response.status_code, response.json()["code"]) == (403, "loopback_only")
    assert "STAGEBUS_AUTH" in response.json()["detail"]
    assert (await api.get("/healthz", headers={"Host": host})).status_code == 200


async def test_open_gateway_refuses_requests_to_another_address(app: Starlette) -> None:
    """`uvicorn stagebus.gateway.app:app --host 0.0.0.0`: the app learns its address only from requests."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7") as api:
        response = await api.get("/runs", headers={"Host": "localhost"})

    assert (response.status_code, response.json()["code"]) == (403, "loopback_only")


async def test_open_gateway_refuses_changes_from_another_site(api: httpx.AsyncClient) -> None:
    foreign = await api.post("/runs", json=HELLO, headers={"Origin": "https://evil.example"})
    own = await api.post("/runs", json=HELLO, headers={"Origin": "http://localhost"})

    assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")
    assert own.status_code == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # The proxy of a development server on this machine keeps both headers, or replaces the Host.
        ({"Host": "localhost:5173", "Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost:5173"}, 202),
        ({"Host": "localhost:8000", "Origin": "http://[::1]:5173"}, 202),
        # A page of another server on this machine asks the gateway directly.
        ({"Host": "localhost:8000", "Origin": "http://localhost:5173", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost:5173", "Sec-Fetch-Site": "cross-site"}, 403),
        # DNS rebinding, directly and through the proxy.
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "127.0.0.1:8000", "Origin": "http://evil.example:5173", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost.evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "127.0.0.1:8000", "Origin": "null", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "127.0.0.1:8000", "Origin": "http://[localhost", "Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
async def test_open_gateway_works_behind_a_development_server_s_proxy(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await api.post("/runs", json=HELLO, headers=headers)).status_code == status


async def test_open_gateway_answers_allowed_host_names(redis: Redis, settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"allowed_hosts": ("bus.example",)}))
    async with app.router.lifespan_context(app), client(app) as api:
        assert (await api.get("/runs", headers={"Host": "bus.example"})).status_code == 200
        assert (await api.get("/runs", headers={"Host": "localhost"})).status_code == 200
        assert (await api.get("/runs", headers={"Host": "other.example"})).json()["code"] == "loopback_only"
