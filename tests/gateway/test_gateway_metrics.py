import time

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.context import Gateway
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.observability import loop_lag
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.store import provider_slots, run_store
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.system_load import read_system_load
from tests.gateway.conftest import ClientOf
from tests.support.system import ROOT
from tests.support.waiting import until


def samples(text: str) -> dict[str, float]:
    """Returns our metrics by name and labels."""
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("stagebus_")
    }


async def test_request_metrics_are_labelled_by_route(api: httpx.AsyncClient) -> None:
    for run_id in ("a", "b"):
        await api.get(f"/runs/{run_id}")
    await api.get("/nowhere")
    found = samples((await api.get("/metrics")).text)

    assert found["stagebus_http_requests_total method=GET route=/runs/{run_id} status=404"] == 2
    assert found["stagebus_http_requests_total method=GET route=unmatched status=404"] == 1
    assert found["stagebus_http_request_seconds_count method=GET route=/runs/{run_id}"] == 2


async def test_metrics_name_no_tenant_run_model_or_key(locked_app: Starlette, client_of: ClientOf) -> None:
    """A scraper need not be allowed to see runs, and a label per run would grow without bound."""
    acme, admin = await client_of("acme-tenant"), await client_of("ops", Scope.ADMIN)
    run_id = (await acme.post("/runs", json={"user_prompt": "Hello", "model": "secret-model"})).json()["id"]
    for path in (
        f"/runs/{run_id}",
        f"/runs/{run_id}/events?limit=1",
        f"/runs?q=acme-tenant&metadata.{run_id}=1",
        "/x/acme-tenant",
    ):
        await acme.get(path, headers={"Accept": "application/json", "X-Request-ID": "acme-tenant"})
    scraped = (await admin.get("/metrics")).text

    assert "stagebus_http_requests_total" in scraped
    for told in ("acme-tenant", run_id, "secret-model", acme.headers["authorization"].split("_")[1]):
        assert told not in scraped


async def test_queue_metrics_come_from_redis(api: httpx.AsyncClient) -> None:
    for _ in range(3):
        await api.post("/runs", json={"user_prompt": "Hello"})
    found = samples((await api.get("/metrics")).text)

    assert found["stagebus_queue_depth"] == 3
    assert found["stagebus_runs status=queued"] == 3
    assert found["stagebus_runs status=running"] == 0
    assert found["stagebus_redis_up"] == 1


async def test_metrics_tell_a_scaler_how_old_the_queue_is_and_how_many_slots_are_free(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    """Of two tenants the one with the longer line has the older run, which is not first in the queue."""
    old = ids.created_ms(await run_store.create_run(redis, settings, tenant="b", model="m", request={}))
    for tenant in ("a", "a", "b"):
        await run_store.create_run(redis, settings, tenant=tenant, model="m", request={})
    for name, held, draining in (("w1", 1, False), ("w2", 3, False), ("w3", 0, True)):
        state = {
            "concurrency": 4,
            "runs": [{"id": "x", "attempt": 1}] * held,
            **({"draining": True} if draining else {}),
        }
        await Heartbeat(redis, keys.WORKERS, name, dict).send(orjson.dumps(state))
    waited_s = ((await redis.time())[0] * 1000 - old) / 1000
    found = samples((await api.get("/metrics")).text)

    assert max(0, waited_s) <= found["stagebus_queue_oldest_wait_seconds"] < waited_s + 30
    assert found["stagebus_queue_depth"] == 4
    assert found["stagebus_workers"] == 3
    assert found["stagebus_worker_slots"] == 12
    assert found["stagebus_worker_slots_free"] == 4, "3 and 1, and none of the worker that shuts down"


async def test_oldest_wait_of_a_lost_run_counts_from_the_end_of_its_lease(redis: Redis, settings: Settings) -> None:
    run_id = await run_store.create_run(redis, settings, tenant="t", model="m", request={})
    now_ms = (await redis.time())[0] * 1000
    await redis.zadd(keys.QUEUE, {run_id: now_ms - 90_000})
    load = await read_system_load(redis, settings.lease_s)

    assert 90 <= load.oldest_wait_s < 120
    await redis.zadd(keys.QUEUE, {run_id: now_ms + 90_000})
    assert (await read_system_load(redis, settings.lease_s)).oldest_wait_s == 0, "parked"
    await redis.zrem(keys.QUEUE, run_id)
    assert (await read_system_load(redis, settings.lease_s)).stranded == 1


async def test_provider_metrics_name_those_with_slots(hub: Hub, redis: Redis) -> None:
    for token in ("x", "y"):
        await provider_slots.acquire(redis, "p", token, held_max=1, minute_max=None, waited_s=0, slot_s=10, seen_s=10)
    found = samples((await Metrics(hub, 1, ["p"]).render(redis)).decode())

    assert found["stagebus_provider_slots_held provider=p"] == 1
    assert found["stagebus_provider_waiting provider=p"] == 1


async def test_redis_metrics_tell_memory_and_replicas(redis: Redis, settings: Settings) -> None:
    server = (await read_system_load(redis, settings.lease_s)).server

    assert server.memory_bytes > 1_000_000
    assert (server.replicas, server.replica_lag_bytes, server.replica_seen_s) == (0, 0, 0)
    assert server.is_aof_ok


async def test_stream_metrics_come_from_the_hub(app: Starlette, api: httpx.AsyncClient) -> None:
    gateway: Gateway = app.state.gateway
    (
        gateway.hub.open_streams,
        gateway.hub.events_relayed,
        gateway.hub._bytes_of_closed,
    ) = 2, 30, 400
    found = samples((await api.get("/metrics")).text)

    assert found["stagebus_open_streams"] == 2
    assert found["stagebus_events_relayed_total"] == 30
    assert found["stagebus_bytes_relayed_total"] == 400


async def test_blocked_event_loop_shows_in_the_lag_metric(app: Starlette, api: httpx.AsyncClient) -> None:
    """A block of a whole timer period or longer is always seen."""

    async def late() -> float:
        found = samples((await api.get("/metrics")).text)
        return found[f"{name}_count"] - found[f"{name}_bucket le=0.1"]

    name = "stagebus_event_loop_lag_seconds"
    before = await late()
    time.sleep(loop_lag.INTERVAL_S + 0.15)  # noqa: ASYNC251 - the lag

    async def is_seen() -> bool:
        return await late() > before

    await until(is_seen)


async def test_metrics_without_redis_have_the_process_s_own(app: Starlette, redis: Redis) -> None:
    gateway: Gateway = app.state.gateway
    nowhere = redis_client.connect(Settings(redis_url="redis://127.0.0.1:1/0"))

    found = samples((await gateway.metrics.render(nowhere)).decode())

    assert found["stagebus_redis_up"] == 0
    assert "stagebus_open_streams" in found


async def test_two_apps_in_one_process_share_no_metrics(app: Starlette) -> None:
    gateway: Gateway = app.state.gateway
    other = Metrics(gateway.hub, gateway.settings.lease_s)

    gateway.metrics.requests.labels("GET", "/", 200).inc()

    assert b'route="/"' not in await other.render(gateway.redis)


async def test_operations_page_lists_every_metric_of_a_gateway(hub: Hub, redis: Redis) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    families = text_string_to_metric_families((await Metrics(hub, 1, ["p"]).render(redis)).decode())
    names = [family.name.removeprefix("stagebus_") for family in families if family.name.startswith("stagebus_")]
    ours = [name for name in names if not name.endswith("_created")]

    assert len(ours) > 20
    assert not [name for name in ours if f"`{name}`" not in page and f"`{name}_total`" not in page]
