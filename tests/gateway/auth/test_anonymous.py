"""The open gateway answers its own machine, and no page of another site."""

import httpx
import pytest
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings

HELLO = {"user_prompt": "Hello"}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:8000"])
async def test_own_names_are_answered(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/runs", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7:8000"])
async def test_names_that_lead_here_by_another_s_will_are_not(api: httpx.AsyncClient, host: str) -> None:
    """A site may let its own name point to this machine, and its pages read what they like."""
    response = await api.get("/runs", headers={"Host": host})

    assert (response.status_code, response.json()["code"]) == (403, "loopback_only")
    assert "STAGEBUS_AUTH" in response.json()["detail"]
    assert (await api.get("/healthz", headers={"Host": host})).status_code == 200


async def test_address_that_others_reach_is_not_answered(app: Starlette) -> None:
    """`uvicorn stagebus.gateway.app:app --host 0.0.0.0`: the app cannot know it before somebody asks."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7") as api:
        response = await api.get("/runs", headers={"Host": "localhost"})

    assert (response.status_code, response.json()["code"]) == (403, "loopback_only")


async def test_page_of_another_site_can_change_nothing(api: httpx.AsyncClient) -> None:
    foreign = await api.post("/runs", json=HELLO, headers={"Origin": "https://evil.example"})
    own = await api.post("/runs", json=HELLO, headers={"Origin": "http://localhost"})

    assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")
    assert own.status_code == 202


async def test_who_insists_is_reached_under_any_name(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"insecure": True}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bus.example") as api,
    ):
        assert (await api.get("/runs")).status_code == 200
