from dataclasses import replace

import httpx
import orjson
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.context import Gateway
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.events import Error
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.store import run_store
from stagebus.shared.store.heartbeats import Heartbeat
from tests.gateway.conftest import ClientOf


async def test_gateway_is_healthy_and_ready(api: httpx.AsyncClient) -> None:
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


async def test_stats_cover_the_whole_system(
    api: httpx.AsyncClient, app: Starlette, redis: Redis, settings: Settings
) -> None:
    """One run is held by a worker, one is held back for it, one waits, and so do the jobs of three ended runs."""
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
    await Heartbeat(redis, keys.WORKERS, "host:1", dict).send(state)
    await Heartbeat(redis, keys.GATEWAYS, "another", dict).send(b'{"streams_open": 3}')
    for run_id in made[3:5]:
        await run_store.cancel_run(redis, settings, run_id)
        await run_store.finalize(redis, settings, run_id)  # once more, which counts nothing
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
    minutes = answered["last_hour"]
    assert all(0 <= minute["began_s_ago"] < 120 for minute in minutes)
    assert {name: sum(minute[name] for minute in minutes) for name in answered["totals"]} == answered["totals"]
    assert 0 < await redis.ttl(keys.totals_of_minute(int((await redis.time())[0]) // 60 - len(minutes) + 1)) <= 2 * 3600


async def test_stats_of_an_empty_system_are_zero(api: httpx.AsyncClient) -> None:
    answered = (await api.get("/stats")).json()

    assert answered["workers"] == []
    assert {*answered["queue"].values(), *answered["totals"].values()} == {0}
    assert answered["last_hour"] == []


async def test_stats_need_the_admin_scope(client_of: ClientOf) -> None:
    assert (await (await client_of("t", Scope.RUNS_READ)).get("/stats")).status_code == 403
    assert (await (await client_of("t", Scope.ADMIN)).get("/stats")).status_code == 200
