import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.context import Gateway
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.observability import loop_lag
from stagebus.shared.storage import redis_client
from tests.gateway.conftest import ClientOf
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
