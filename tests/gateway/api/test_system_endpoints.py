import re
from dataclasses import replace
from typing import Final
from urllib.parse import urljoin

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.context import Gateway
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import events, ids
from stagebus.shared.domain.events import Error
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import run_store, tool_catalog
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.tool_catalog import ToolDescription
from tests.gateway.conftest import ClientOf

PAGE_MAX_BYTES: Final = 100_000  # over the wire
IMPORTS: Final = re.compile(r'^import .*? from "([^"]+)";$', re.MULTILINE)
PROVIDERS = """
[providers.one]
base_url = "http://127.0.0.1:1/v1"
key = { env = "STAGEBUS_NO_SUCH_KEY" }
models = [{ name = "a", fallbacks = ["b"], price = { input = 2, output = 8 } }, "x/*"]

[providers.two]
base_url = "http://127.0.0.1:2/v1"
tools = "prompted"
models = ["b"]

[aliases]
best = ["a", "b"]
"""


async def test_healthy_and_ready(api: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        response = await api.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_draining_gateway_is_healthy_but_not_ready(app: Starlette, api: httpx.AsyncClient) -> None:
    gateway: Gateway = app.state.gateway
    gateway.hub.begin_drain()

    ready = await api.get("/readyz")

    assert (ready.status_code, ready.json()["code"]) == (503, "draining")
    assert (await api.get("/healthz")).status_code == 200


async def test_gateway_without_redis_is_healthy_but_not_ready(app: Starlette, api: httpx.AsyncClient) -> None:
    gateway: Gateway = app.state.gateway
    app.state.gateway = replace(gateway, redis=Redis(host="127.0.0.1", port=1))

    ready = await api.get("/readyz")

    assert (ready.status_code, ready.json()["code"]) == (503, "storage_unavailable")
    assert (await api.get("/healthz")).status_code == 200


async def test_unfit_redis_stops_the_start(redis: Redis, settings: Settings) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    app = create_app(settings)
    try:
        with pytest.raises(StorageUnfit, match="noeviction"):
            async with app.router.lifespan_context(app):
                pass
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_unreachable_redis_stops_the_start() -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))

    with pytest.raises(StorageUnfit, match="STAGEBUS_REDIS_URL"):
        async with app.router.lifespan_context(app):
            pass


# --- GET /stats --------------------------------------------------------------


async def test_stats_are_of_the_whole_system(
    api: httpx.AsyncClient, app: Starlette, redis: Redis, settings: Settings
) -> None:
    """One run is in a worker's hands, one is held back for it, one waits, and so do the jobs of three that have ended."""
    made = [
        await run_store.create_run(redis, settings, tenant=tenant, model="m", request={"timeout_s": 60})
        for tenant in ("a", "a", "a", "b", "b", "b")
    ]
    await redis.hset(keys.LIMITS, "a:runs_running", 1)
    held = made[0]
    assert await queue_scripts.acquire(redis, held, "token", settings.lease_s)
    assert not await queue_scripts.acquire(redis, made[1], "token", settings.lease_s)
    claim = await run_scripts.claim(redis, held, "host:1")
    assert claim is not None
    runs = [{"id": held, "attempt": claim.attempt}, {"id": ids.new_run_id(), "attempt": 1}]
    state = orjson.dumps({"concurrency": 4, "runs": runs})
    await Heartbeat(redis, keys.WORKERS, "host:1", dict)._say(state)
    await Heartbeat(redis, keys.GATEWAYS, "another", dict)._say(b'{"streams_open": 3}')
    for run_id in made[3:5]:
        await run_store.cancel_run(redis, settings, run_id)
        await run_store.settle(redis, settings, run_id)  # once more, which counts nothing
    failed = await run_store.end_unheld(redis, settings, made[5], Error(error="x", code="internal"))
    answered = (await api.get("/stats")).json()

    assert failed
    (worker,) = answered["workers"]
    (run,) = worker["runs"]
    assert 0 < run.pop("lease_ends_in_ms") <= settings.lease_s * 1000
    assert 0 <= worker.pop("seen_ms_ago") < 5_000
    assert worker == {"name": "host:1", "concurrency": 4, "runs": [{"id": held, "attempt": claim.attempt}]}
    assert answered["queue"] == {"waiting": 4, "held_back": 1, "running": 1, "parked": 0}
    assert answered["totals"] == {
        "events": 6, "runs_succeeded": 0, "runs_failed": 1, "runs_cancelled": 2, "tokens": 0,
    }  # fmt: skip
    assert answered["streams_open"] == 3, "over all gateways"


async def test_stats_of_an_empty_system_are_noughts(api: httpx.AsyncClient) -> None:
    answered = (await api.get("/stats")).json()

    assert answered["workers"] == []
    assert {*answered["queue"].values(), *answered["totals"].values()} == {0}


async def test_stats_are_the_operator_s(client_of: ClientOf) -> None:
    assert (await (await client_of("t", Scope.RUNS_READ)).get("/stats")).status_code == 403
    assert (await (await client_of("t", Scope.ADMIN)).get("/stats")).status_code == 200


async def test_tools_are_those_that_workers_published(api: httpx.AsyncClient, redis: Redis) -> None:
    assert (await api.get("/tools")).json() == {"tools": []}
    tools = [ToolDescription(name=name, description="d", parameters={"type": "object"}) for name in ("b", "a")]
    await tool_catalog.publish_tools(redis, tools)

    assert [tool["name"] for tool in (await api.get("/tools")).json()["tools"]] == ["a", "b"]


async def test_any_model_goes_to_the_one_provider(api: httpx.AsyncClient, settings: Settings) -> None:
    models = (await api.get("/models")).json()

    assert [(model["id"], model["is_default"]) for model in models["models"]] == [(settings.model, True)]
    assert models["any_model"] is True


async def test_models_of_a_providers_file_are_listed_and_others_refused(redis, settings, tmp_path) -> None:
    (tmp_path / "providers.toml").write_text(PROVIDERS)
    app = create_app(settings.model_copy(update={"providers": tmp_path / "providers.toml"}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as api,
    ):
        models = (await api.get("/models")).json()
        refused = await api.post("/runs", json={"user_prompt": "hi", "model": {"extraction": "a", "synthesis": "c"}})
        taken = await api.post("/runs", json={"user_prompt": "hi", "model": {"extraction": "best", "synthesis": "x/1"}})
        run = (await api.get(f"/runs/{taken.json()['id']}")).json()

    assert [(m["id"], m["provider"], m["is_default"], m["fallbacks"]) for m in models["models"]] == [
        ("best", "one", True, ["a", "b"]),
        ("a", "one", False, ["b"]),
        ("b", "two", False, []),
    ]
    assert models["models"][2]["abilities"]["tools"] == "prompted"
    price = {"input": 2, "output": 8, "cached": 2, "currency": "USD"}
    assert [model["price"] for model in models["models"]] == [price, price, None]
    assert (models["patterns"], models["any_model"]) == (["x/*"], False)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model.synthesis")
    assert "available models: best, a, b, x/*" in refused.json()["detail"]
    assert run["model"] == "extraction=best,synthesis=x/1"


async def test_event_schema(api: httpx.AsyncClient) -> None:
    assert (await api.get("/schema/events.json")).json() == events.json_schema()


async def test_problem_types_are_explained_at_their_own_url(api: httpx.AsyncClient) -> None:
    problem = (await api.get("/runs/x")).json()
    explained = await api.get(problem["type"])

    assert (explained.status_code, explained.json()["code"]) == (200, "run_not_found")
    assert (await api.get("/problems/none")).status_code == 404


async def test_page_loads_nothing_from_elsewhere(api: httpx.AsyncClient) -> None:
    page = await api.get("/")
    policy = page.headers["content-security-policy"]

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in page.headers


async def test_static_files_are_kept_by_browsers_but_asked_for(api: httpx.AsyncClient) -> None:
    first = await api.get("/static/index.html")
    again = await api.get("/static/index.html", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["cache-control"] == "no-cache"
    assert (first.status_code, again.status_code) == (200, 304)
    assert "content-security-policy" in again.headers


async def test_page_is_two_steps_away_and_small(api: httpx.AsyncClient) -> None:
    """Each module that the page's script leads to is asked for by the page itself; and all of it is under 100 KB."""
    page = await api.get("/")
    (script,) = re.findall(r'<script type="module" src="([^"]+)"', page.text)
    preloaded = re.findall(r'<link rel="modulepreload" href="([^"]+)"', page.text)
    others = re.findall(r'<link rel="(?:icon|stylesheet)" href="([^"]+)"', page.text)
    modules = {script: await api.get(script)}
    while new := {urljoin(at, to) for at, got in modules.items() for to in IMPORTS.findall(got.text)} - modules.keys():
        modules |= {path: await api.get(path) for path in new}
    replies = [page, *modules.values(), *[await api.get(path) for path in others]]

    assert sorted(preloaded) == sorted(modules.keys() - {script})
    assert len(others) == 2
    assert all(reply.status_code == 200 for reply in replies)
    assert sum(reply.num_bytes_downloaded for reply in replies) < PAGE_MAX_BYTES


@pytest.mark.parametrize("path", ["", "none", "..%2fapp.py", "%2e%2e/app.py", "%2fetc%2fpasswd", "%00", "x" * 5000])
async def test_no_other_file_is_served(api: httpx.AsyncClient, path: str) -> None:
    response = await api.get(f"/static/{path}")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_unknown_path_is_a_problem(api: httpx.AsyncClient) -> None:
    for path in ("/none", "/runs/", "/runs/x/y", "/static"):
        response = await api.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
