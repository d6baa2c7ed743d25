"""The outbox becomes deliveries; these are tried, settled, sent again and listed."""

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import ENDPOINTS_MAX, WebhookConfig
from stagebus.shared.domain.webhook_messages import Delivery, DeliveryState
from stagebus.shared.storage import keys
from stagebus.shared.store import webhook_deliveries, webhook_outbox
from stagebus.shared.store.webhook_deliveries import Try, TryResult
from stagebus.shared.webhook_errors import DeliveryNotFound
from tests.shared.config.test_webhooks_file import ENDPOINT, RUN_URLS, load
from tests.support.outbox_entries import put_entry

LEASE_S = 20.0


@pytest.fixture
def webhooks(tmp_path: Path) -> WebhookConfig:
    return load(tmp_path, ENDPOINT + RUN_URLS)


async def make(redis: Redis, webhooks: WebhookConfig, count: int = 1, webhook_url: str = "") -> list[str]:
    runs = [await put_entry(redis, webhook_url=webhook_url) for _ in range(count)]
    while await webhook_outbox.fan_out(redis, webhooks):
        pass
    return runs


async def due_of(redis: Redis, endpoint: str = "billing") -> list[str]:
    return [
        one for due in await webhook_deliveries.list_due(redis) if due.endpoint == endpoint for one in due.delivery_ids
    ]


async def acquire(redis: Redis, delivery_id: str, lease_s: float = LEASE_S) -> Try:
    begun = await webhook_deliveries.acquire(redis, "billing", delivery_id, lease_s)
    assert begun is not None
    return begun


async def listed(redis: Redis, state: DeliveryState | None = None) -> list[Delivery]:
    return (await webhook_deliveries.list_deliveries(redis, 100, state=state)).deliveries


async def test_an_entry_becomes_a_delivery_for_each_receiver(redis: Redis, webhooks: WebhookConfig) -> None:
    (run_id,) = await make(redis, webhooks, webhook_url="https://app.example/x")

    deliveries = {one.endpoint: one for one in await listed(redis)}

    assert deliveries.keys() == {"billing", "run-url https://app.example"}
    one = deliveries["billing"]
    assert (one.webhook_id, one.url, one.run_id) == (f"msg_{run_id}_5_2_run.ended", "", run_id)
    assert deliveries["run-url https://app.example"].url == "https://app.example/x"
    body = json.loads(one.body)
    assert body == {
        "type": "run.ended", "timestamp": "2026-03-01T12:00:00.123Z",
        "data": {"run_id": run_id, "status": "succeeded", "at": 1772366400123, "tenant": "t"},
    }  # fmt: skip
    assert await redis.xlen(keys.outbox()) == 0


async def test_many_workers_make_each_delivery_once(redis: Redis, webhooks: WebhookConfig) -> None:
    runs = [await put_entry(redis) for _ in range(30)]
    await asyncio.gather(*(webhook_outbox.fan_out(redis, webhooks) for _ in range(5)))

    assert sorted(one.run_id for one in await listed(redis)) == sorted(runs)
    assert await webhook_deliveries.count_open(redis) == {"billing": 30}


async def test_an_entry_that_is_told_again_makes_no_second_delivery(redis: Redis, webhooks: WebhookConfig) -> None:
    """Redis came back from an older copy: the entry is there again, the delivery, too."""
    (run_id,) = await make(redis, webhooks)
    await put_entry(redis, run_id=run_id)
    await webhook_outbox.fan_out(redis, webhooks)

    assert await webhook_deliveries.count_open(redis) == {"billing": 1}


async def test_unreadable_and_unwanted_entries_are_removed(
    redis: Redis, webhooks: WebhookConfig, tmp_path: Path
) -> None:
    await redis.xadd(keys.outbox(), {"message": "m"})
    await redis.xadd(
        keys.outbox(), {"message": "m", "type": "run.ended", "tenant": "t", "webhook_url": "", "data": "[1"}
    )
    (run_id,) = await make(redis, webhooks)
    await make(redis, load(tmp_path, RUN_URLS))

    assert await redis.xlen(keys.outbox()) == 0
    assert [one.run_id for one in await listed(redis)] == [run_id]


async def test_an_endpoint_has_four_tries_at_once(redis: Redis, webhooks: WebhookConfig) -> None:
    await make(redis, webhooks, 6)
    tries = [await acquire(redis, delivery_id) for delivery_id in await due_of(redis)]

    assert len(tries) == webhook_deliveries.PLACES
    assert await due_of(redis) == []
    fifth = next(
        one.delivery_id for one in await listed(redis) if one.delivery_id not in {t.delivery.delivery_id for t in tries}
    )
    assert await webhook_deliveries.acquire(redis, "billing", fifth, LEASE_S) is None
    assert await webhook_deliveries.settle(
        redis, tries[0].delivery, tries[0].token, TryResult(DeliveryState.DELIVERED, 200)
    )
    assert await webhook_deliveries.acquire(redis, "billing", fifth, LEASE_S) is not None


async def test_a_try_whose_worker_died_is_due_again(redis: Redis, webhooks: WebhookConfig) -> None:
    """And the dead worker, if it wakes up, cannot settle it."""
    await make(redis, webhooks)
    (delivery_id,) = await due_of(redis)
    dead = await acquire(redis, delivery_id, lease_s=0.001)
    await asyncio.sleep(0.01)

    again = await acquire(redis, delivery_id)

    assert again.delivery.tries == 0, "a death is not the receiver's fault"
    assert not await webhook_deliveries.settle(
        redis, dead.delivery, dead.token, TryResult(DeliveryState.DELIVERED, 200)
    )
    assert await webhook_deliveries.settle(redis, again.delivery, again.token, TryResult(DeliveryState.DELIVERED, 200))


async def test_a_delivered_message_is_kept_for_a_while(redis: Redis, webhooks: WebhookConfig) -> None:
    await make(redis, webhooks)
    begun = await acquire(redis, (await due_of(redis))[0])
    await webhook_deliveries.settle(redis, begun.delivery, begun.token, TryResult(DeliveryState.DELIVERED, 204))

    (delivery,) = await listed(redis, DeliveryState.DELIVERED)
    assert (delivery.tries, delivery.last_status, delivery.ended_at > 0) == (1, 204, True)
    assert 0 < await redis.ttl(keys.webhook_delivery(delivery.delivery_id)) <= 86400
    assert await webhook_deliveries.count_open(redis) == {}
    assert not await redis.exists(
        keys.webhook_open("billing"), keys.webhook_due("billing"), keys.webhook_trying("billing")
    )


async def test_a_failed_try_is_due_after_its_delay(redis: Redis, webhooks: WebhookConfig) -> None:
    await make(redis, webhooks)
    begun = await acquire(redis, (await due_of(redis))[0])
    await webhook_deliveries.settle(redis, begun.delivery, begun.token, TryResult(DeliveryState.WAITING, 500, "no", 30))

    (due,) = await webhook_deliveries.list_due(redis)
    assert due.delivery_ids == []
    assert 29_000 < due.next_ms <= 30_000
    assert (await listed(redis))[0].last_error == "no"


async def test_resend_makes_any_delivery_due_with_all_its_tries(redis: Redis, webhooks: WebhookConfig) -> None:
    await make(redis, webhooks)
    begun = await acquire(redis, (await due_of(redis))[0])
    await webhook_deliveries.settle(redis, begun.delivery, begun.token, TryResult(DeliveryState.FAILED, 500, "no"))
    await webhook_deliveries.mark_gone(redis, "billing", "https://billing.example/hooks")
    delivery_id = begun.delivery.delivery_id

    for _ in range(2):
        await webhook_deliveries.resend(redis, delivery_id)
        await webhook_outbox.add_test(redis, "other", "test")

    assert await due_of(redis) == [delivery_id]
    assert await webhook_deliveries.count_open(redis) == {"billing": 1, "other": 1}
    assert await redis.llen(keys.outbox_bell()) == 1, "it does not grow without workers"  # type: ignore[misc]
    assert (await webhook_deliveries.read(redis, delivery_id)).tries == 0
    assert await redis.ttl(keys.webhook_delivery(delivery_id)) == -1
    assert await listed(redis, DeliveryState.FAILED) == []
    assert not await webhook_deliveries.is_gone(redis, "billing", "https://billing.example/hooks")


async def test_resend_of_an_unknown_delivery(redis: Redis) -> None:
    with pytest.raises(DeliveryNotFound):
        await webhook_deliveries.resend(redis, "nothing")


async def test_too_many_open_deliveries_fail_the_oldest_of_the_largest_endpoint(
    redis: Redis, webhooks: WebhookConfig
) -> None:
    runs = await make(redis, webhooks, 6)
    await make(redis, webhooks, 1, webhook_url="https://app.example/x")

    assert await webhook_deliveries.end_overflow(redis, open_max=5) == 3

    failed = await listed(redis, DeliveryState.FAILED)
    assert {one.endpoint for one in failed} == {"billing"}
    assert {one.last_error for one in failed} == {"overflow"}
    assert {one.run_id for one in failed} <= set(runs)
    assert sum((await webhook_deliveries.count_open(redis)).values()) == 5


async def test_only_so_many_ended_deliveries_are_kept(
    redis: Redis, webhooks: WebhookConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(webhook_deliveries.KEPT_MAX, DeliveryState.DELIVERED, 2)  # type: ignore[arg-type]
    await make(redis, webhooks, 3)
    for delivery_id in await due_of(redis):
        begun = await acquire(redis, delivery_id)
        await webhook_deliveries.settle(redis, begun.delivery, begun.token, TryResult(DeliveryState.DELIVERED, 200))

    assert len(await listed(redis)) == 2
    assert len([key async for key in redis.scan_iter("sb:webhook:*")]) == 2


async def test_list_is_paged_and_filtered(redis: Redis, webhooks: WebhookConfig) -> None:
    await make(redis, webhooks, 5, webhook_url="https://app.example/x")
    seen: list[str] = []
    before = None
    while True:
        page = await webhook_deliveries.list_deliveries(redis, 3, endpoint="billing", before=before)
        seen += [one.delivery_id for one in page.deliveries]
        before = page.next
        if before is None:
            break

    assert len(seen) == len(set(seen)) == 5
    assert all(one.endswith(".billing") for one in seen)


async def test_a_page_without_a_wanted_delivery_names_its_successor(
    redis: Redis, webhooks: WebhookConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries of all endpoints end in one list, and each page looks at some of them."""
    await make(redis, webhooks, webhook_url="https://app.example/x")
    await make(redis, webhooks, 3)
    for delivery in (await listed(redis))[::-1]:
        await webhook_deliveries.settle(redis, delivery, "", TryResult(DeliveryState.FAILED))
    monkeypatch.setattr(webhook_deliveries, "EXAMINED_MAX", 2)
    seen: list[str] = []
    before = None
    for _ in range(4):
        page = await webhook_deliveries.list_deliveries(
            redis, 3, state=DeliveryState.FAILED, endpoint="run-url https://app.example", before=before
        )
        seen += [one.endpoint for one in page.deliveries]
        if (before := page.next) is None:
            break

    assert seen == ["run-url https://app.example"]
    assert before is None


async def test_counts(redis: Redis, webhooks: WebhookConfig, settings: Settings) -> None:
    await make(redis, webhooks, 2)
    await put_entry(redis)

    counts = await webhook_deliveries.count(redis)

    assert (counts.undistributed, counts.open, counts.failed, counts.gone) == (1, {"billing": 2}, 0, [])
    assert counts.oldest_ms >= 0


async def test_a_full_batch_for_as_many_endpoints_as_possible(redis: Redis, tmp_path: Path) -> None:
    """The script takes more arguments than Lua can unpack."""
    many = "".join(ENDPOINT.replace("billing]", f"e{number}]") for number in range(ENDPOINTS_MAX))
    await make(redis, load(tmp_path, many), webhook_outbox.BATCH)

    assert set((await webhook_deliveries.count_open(redis)).values()) == {webhook_outbox.BATCH}
    assert len(await webhook_deliveries.count_open(redis)) == ENDPOINTS_MAX
