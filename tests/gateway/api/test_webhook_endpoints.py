"""The deliveries of webhooks over HTTP, and a run's own webhook."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.webhook_messages import DeliveryState
from stagebus.shared.storage import keys
from stagebus.shared.store import run_store, webhook_deliveries, webhook_outbox
from stagebus.shared.store.webhook_deliveries import TryResult
from tests.gateway.conftest import client
from tests.shared.config.test_webhooks_file import ENDPOINT, RUN_URLS, load
from tests.support.audit_records import audit_records
from tests.support.outbox_entries import put_entry

BODY = {"user_prompt": "Hi"}
MINE = "http://10.0.0.7:8080/hooks?run=7"


@pytest.fixture
async def listening(redis: Redis, settings: Settings, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with a webhooks file."""
    (tmp_path / "hooks.toml").write_text(ENDPOINT + RUN_URLS)
    app = create_app(settings.model_copy(update={"webhooks": tmp_path / "hooks.toml"}))
    async with app.router.lifespan_context(app), client(app) as api:
        yield api


async def fail_one(redis: Redis, tmp_path: Path) -> str:
    """Returns a delivery that has failed."""
    await put_entry(redis)
    await webhook_outbox.fan_out(redis, load(tmp_path, ENDPOINT))
    (due,) = await webhook_deliveries.list_due(redis)
    begun = await webhook_deliveries.acquire(redis, "billing", due.delivery_ids[0], 20)
    assert begun is not None
    await webhook_deliveries.settle(
        redis, begun.delivery, begun.token, TryResult(DeliveryState.FAILED, 500, "status 500")
    )
    return begun.delivery.delivery_id


async def test_deliveries_are_listed_and_sent_again(
    listening: httpx.AsyncClient, redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stagebus.audit")
    delivery_id = await fail_one(redis, tmp_path)
    (failed,) = (await listening.get("/webhooks/deliveries", params={"state": "failed"})).json()["deliveries"]
    answer = await listening.post(f"/webhooks/deliveries/{delivery_id}/resend")

    assert (failed["id"], failed["tries"], failed["last_status"], failed["last_error"]) == (
        delivery_id, 1, 500, "status 500",
    )  # fmt: skip
    assert (answer.status_code, answer.json()["state"], answer.json()["tries"]) == (202, "waiting", 0)
    assert (await listening.get("/stats")).json()["webhooks"]["open"] == {"billing": 1}
    assert 'stagebus_webhooks_open{endpoint="billing"} 1.0' in (await listening.get("/metrics")).text
    assert [record.message for record in audit_records(caplog)] == ["webhook.resend"]


@pytest.mark.parametrize(
    ("query", "field"),
    [({"state": "lost"}, "state"), ({"endpoint": "x" * 301}, "endpoint"), ({"before": "x"}, "before")],
)
async def test_bad_filters_are_named(listening: httpx.AsyncClient, query: dict[str, str], field: str) -> None:
    answer = await listening.get("/webhooks/deliveries", params=query)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


@pytest.mark.parametrize("delivery_id", ["nothing", "a%20b", "x" * 401, "%00"])
async def test_unknown_delivery_is_not_found(listening: httpx.AsyncClient, delivery_id: str) -> None:
    answer = await listening.post(f"/webhooks/deliveries/{delivery_id}/resend")

    assert answer.status_code == 404
    if delivery_id != "%00":  # matches no route
        assert "GET /webhooks/deliveries lists" in answer.json()["detail"]


async def test_a_run_has_its_own_webhook_where_the_operator_allows_it(
    listening: httpx.AsyncClient, redis: Redis
) -> None:
    run_id = (await listening.post("/runs", json={**BODY, "webhook_url": MINE})).json()["id"]

    assert (await redis.hget(keys.run(run_id), "webhook_url")).decode() == MINE
    assert (await run_store.get_run(redis, run_id)).request["webhook_url"] == MINE
    for url in ("https://evil.example/", "https://app.example.evil/", "javascript:alert(1)", "http://10.0.0.7/"):
        answer = await listening.post("/runs", json={**BODY, "webhook_url": url})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "webhook_url")
        assert "run_urls.origins" in answer.json()["detail"]


async def test_without_a_file_no_run_has_a_webhook(api: httpx.AsyncClient) -> None:
    answer = await api.post("/runs", json={**BODY, "webhook_url": MINE})

    assert answer.status_code == 422


async def test_a_cancel_by_the_gateway_is_told(listening: httpx.AsyncClient, redis: Redis) -> None:
    run_id = (await listening.post("/runs", json=BODY)).json()["id"]
    await listening.post(f"/runs/{run_id}/cancel")

    ((_, fields),) = await redis.xrange(keys.outbox())
    assert b"run.ended" in fields
    assert b'"status":"cancelled"' in fields[-1]
