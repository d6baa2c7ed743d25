"""URLs in responses, at the root and below a prefix: mounted in another app, or behind a proxy that strips a path."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Mount

from stagebus.gateway.api.urls import Urls
from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import ApprovalRequired, StageStarted
from stagebus.shared.domain.tenants import TENANT_WIDE, Scope
from stagebus.shared.store import api_keys
from tests.gateway.conftest import SECRET
from tests.support.runs_by_hand import RunByHand

PREFIX = "/ai"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
DEFAULT_TENANT_RUN = {"user_prompt": "Hello"}


def mounted(app: Starlette) -> httpx.ASGITransport:
    """The gateway inside another app, which enters the gateway's lifespan."""

    @asynccontextmanager
    async def lifespan(_outer: Starlette) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    return httpx.ASGITransport(Starlette(routes=[Mount(PREFIX, app)], lifespan=lifespan))


def proxied(app: Starlette) -> httpx.ASGITransport:
    """The gateway as `uvicorn --root-path` calls it: with the prefix in `path` and in `root_path`."""
    return httpx.ASGITransport(app, root_path=PREFIX)


@pytest.fixture(params=[mounted, proxied])
async def prefixed(
    request: pytest.FixtureRequest, redis: Redis, settings: Settings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that is reached below a prefix."""
    transport = request.param(create_app(settings))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(transport.app.router.lifespan_context(transport.app))
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://localhost"))


@pytest.fixture(params=["http", "https"])
async def browser(request: pytest.FixtureRequest, redis: Redis, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at a mounted gateway that requires keys."""
    transport = mounted(create_app(settings.model_copy(update={"auth": "keys", "secret": SecretStr(SECRET)})))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(transport.app.router.lifespan_context(transport.app))
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url=f"{request.param}://localhost", headers=OWN_PAGE)
        )


async def test_links_of_a_run_contain_the_prefix_and_work(prefixed: httpx.AsyncClient) -> None:
    created = await prefixed.post("/ai/runs", json=DEFAULT_TENANT_RUN)
    run_id, links = created.json()["id"], created.json()["links"]
    (listed,) = (await prefixed.get("/ai/runs")).json()["runs"]
    shown = await prefixed.get(links["self"])
    events = await prefixed.get(links["events"], headers={"Accept": "application/json"})
    cancelled = await prefixed.post(links["cancel"])

    assert created.headers["location"] == links["self"] == f"/ai/runs/{run_id}"
    assert listed["links"] == shown.json()["links"] == cancelled.json()["links"] == links
    assert [response.status_code for response in (shown, events, cancelled)] == [200, 200, 200]


async def test_links_of_stages_and_approvals_contain_the_prefix(prefixed: httpx.AsyncClient, run: RunByHand) -> None:
    await run.put(
        StageStarted(stage_id="tools", attempt=1),
        ApprovalRequired(stage_id="tools", call_id="c/1", name="pay", arguments="{}", expires_at=1),
    )
    view = (await prefixed.get(f"/ai/runs/{run.run_id}")).json()
    (stage,), (pending,) = view["stages"], view["pending_approvals"]
    events = await prefixed.get(stage["events"], headers={"Accept": "application/json"})
    decided = await prefixed.post(pending["url"], json={"decision": "approve"})

    assert stage["events"] == f"/ai/runs/{run.run_id}/stages/tools/events"
    assert pending["url"] == f"/ai/runs/{run.run_id}/approvals/c%2F1"
    assert (events.status_code, decided.status_code) == (200, 202)


async def test_ticket_links_contain_the_prefix_and_work(browser: httpx.AsyncClient, redis: Redis) -> None:
    _, key = await api_keys.create(redis, tenant="t", scopes=TENANT_WIDE)
    authorization = {"Authorization": f"Bearer {key}"}
    run_id = (await browser.post("/ai/runs", json=DEFAULT_TENANT_RUN, headers=authorization)).json()["id"]
    links = (await browser.post(f"/ai/runs/{run_id}/ticket", headers=authorization)).json()["links"]
    events = await browser.get(links["events"], headers={"Accept": "application/json"})

    assert links["page"].startswith(f"/ai/?run={run_id}#ticket=")
    assert events.status_code == 200


async def test_session_cookie_is_limited_to_the_prefix(browser: httpx.AsyncClient, redis: Redis) -> None:
    _, key = await api_keys.create(redis, tenant="t", scopes=[Scope.RUNS_READ])
    signed_in = await browser.post("/ai/session", headers={"Authorization": f"Bearer {key}"})
    cookie = signed_in.headers["set-cookie"]
    own = await browser.get("/ai/session")
    ended = await browser.delete("/ai/session")

    is_secure = browser.base_url.scheme == "https"
    assert cookie.startswith("__Secure-stagebus=" if is_secure else "stagebus=")
    assert ("; Secure" in cookie) == is_secure
    assert "; Path=/ai;" in cookie
    assert own.json() == signed_in.json()
    assert ended.status_code == 204
    assert not browser.cookies


async def test_problem_types_contain_the_prefix_and_work(prefixed: httpx.AsyncClient) -> None:
    problem = (await prefixed.get("/ai/runs/x")).json()
    explained = await prefixed.get(problem["type"])
    missing = (await prefixed.get("/ai/none")).json()

    assert problem["type"] == "/ai/problems/run_not_found"
    assert explained.json()["type"] == problem["type"]
    assert "GET /ai/openapi.json" in missing["detail"]


async def test_openapi_server_is_the_prefix(prefixed: httpx.AsyncClient, api: httpx.AsyncClient) -> None:
    below, at_root = (await prefixed.get("/ai/openapi.json")).json(), (await api.get("/openapi.json")).json()

    assert (below.pop("servers"), at_root.pop("servers")) == ([{"url": "/ai"}], [{"url": "/"}])
    assert below == at_root


@pytest.mark.parametrize("page", ["/ai/", "/ai/docs"])
async def test_pages_load_their_files_from_below_the_prefix(prefixed: httpx.AsyncClient, page: str) -> None:
    text = (await prefixed.get(page)).text
    files = [urljoin(page, link) for link in re.findall(r'(?:src|href)="([^"#]+\.\w+)"', text)]

    assert len(files) > 3
    for file in files:
        assert file.startswith("/ai/static/")
        assert (await prefixed.get(file)).status_code == 200


def test_approval_url_escapes_the_call_id() -> None:
    assert Urls("/ai").approval("r", "a/b?c#d") == "/ai/runs/r/approvals/a%2Fb%3Fc%23d"
