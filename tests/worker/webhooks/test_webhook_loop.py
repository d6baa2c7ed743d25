"""Webhooks from the outbox to a receiver that may hang or lie."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.domain.webhook_messages import DeliveryState
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.store import run_store, webhook_deliveries, webhook_outbox
from stagebus.worker.webhooks import retry_schedule, webhook_loop, webhook_sender
from stagebus.worker.webhooks.webhook_loop import WebhookLoop
from tests.support.outbox_entries import put_entry
from tests.support.redis_calls import sent
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, WebhookReceiver, answer, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits in tenths of seconds."""
    monkeypatch.setattr(retry_schedule, "BACKOFFS_S", (0.1,) * 10)
    monkeypatch.setattr(webhook_sender, "TRY_MAX_S", 0.5)
    monkeypatch.setattr(webhook_sender, "DROP_MAX_S", 0.2)
    monkeypatch.setattr(webhook_loop, "STOP_GRACE_S", 0.1)


def configure(tmp_path: Path, **urls: str) -> WebhookConfig:
    path = tmp_path / "webhooks.toml"
    path.write_text("".join(f'[endpoints.{name}]\nurl = "{url}"\nsecret = "{SECRET}"\n' for name, url in urls.items()))
    return WebhookConfig.from_settings(Settings(webhooks=path))


@asynccontextmanager
async def sending(
    redis: Redis, settings: Settings, webhooks: WebhookConfig, allow: str = "127.0.0.1"
) -> AsyncIterator[list[str]]:
    """Runs a worker's loop; yields the results of its tries."""
    results: list[str] = []
    allowing = settings.model_copy(update={"egress_allow": (allow,)})
    loop = WebhookLoop(redis, allowing, webhooks, lambda endpoint, result: results.append(f"{endpoint} {result}"))
    loop.start()
    yield results
    await loop.stop()


async def has_ended(redis: Redis, state: DeliveryState, count: int = 1) -> bool:
    page = await webhook_deliveries.list_deliveries(redis, 100, state=state)
    return len(page.deliveries) == count


async def the_delivery(redis: Redis):  # type: ignore[no-untyped-def]
    (delivery,) = (await webhook_deliveries.list_deliveries(redis, 100)).deliveries
    return delivery


async def test_a_message_arrives_signed(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/ok"))) as results:
        run_id = await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.DELIVERED))

    (message,) = receiver.messages
    assert (message.webhook_id, message.run_id) == (f"msg_{run_id}_5_2_run.ended", run_id)
    assert message.payload["type"] == "run.ended"
    assert results == ["a delivered"]


async def test_an_endpoint_with_another_url_is_no_longer_reported_as_gone(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    """Nor is one that is no longer configured."""
    await webhook_deliveries.mark_gone(redis, "moved", receiver.url("/before"))
    await webhook_deliveries.mark_gone(redis, "removed", receiver.url("/before"))
    await webhook_deliveries.mark_gone(redis, "same", receiver.url("/same"))
    webhooks = configure(tmp_path, moved=receiver.url("/ok"), same=receiver.url("/same"))

    async def reported() -> list[str]:
        return (await webhook_deliveries.count(redis)).gone

    async with sending(redis, settings, webhooks):
        await until(lambda: _equals(reported(), ["same"]))


async def _equals(read: Awaitable[object], expected: object) -> bool:
    return await read == expected


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/hang", "no answer within"), ("/drip", "no answer"), ("/reset", "no answer"), ("/500", "status 500"),
        ("/redirect", "status 307"),
    ],
)  # fmt: skip
async def test_a_failed_message_is_sent_again_under_its_id(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path, path: str, error: str
) -> None:
    async with sending(redis, settings, configure(tmp_path, a=receiver.url(path))):
        await put_entry(redis)
        await until(lambda: asyncio.sleep(0, len(receiver.at(path)) >= 3))

    assert len({message.webhook_id for message in receiver.messages}) == 1
    assert {message.path for message in receiver.messages} == {path}, "a redirect is not followed"
    delivery = await the_delivery(redis)
    assert delivery.last_error.startswith(error) or delivery.last_error == "the worker stopped"
    assert delivery.state is DeliveryState.WAITING


@pytest.mark.parametrize("path", ["/huge", "/half", "/compressed"])
async def test_a_success_delivers_whatever_its_body_does(
    redis: Redis,
    settings: Settings,
    receiver: WebhookReceiver,
    tmp_path: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The body may be endless, stop in the middle, or be compressed although that was not asked for."""
    monkeypatch.setattr(webhook_sender, "TRY_MAX_S", 0.3)
    monkeypatch.setattr(webhook_sender, "DROP_MAX_S", 0.4)
    receiver.answers["/compressed"] = [answer("200 OK", "content-encoding: gzip\r\n")]
    async with sending(redis, settings, configure(tmp_path, a=receiver.url(path))):
        await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.DELIVERED))

    assert len(receiver.messages) == 1


async def test_retry_after_delays_the_next_try(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    receiver.answers["/busy"] = [answer("503 Busy", "retry-after: 1\r\n")]
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/busy"))):
        await put_entry(redis)
        loop = asyncio.get_running_loop()
        await until(lambda: asyncio.sleep(0, len(receiver.messages) == 1))
        began = loop.time()
        await until(lambda: asyncio.sleep(0, len(receiver.messages) == 2))

    assert loop.time() - began >= 0.9


async def test_410_ends_the_endpoint(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    """Until an operator sends a message again."""
    webhooks = configure(tmp_path, a=receiver.url("/410"))
    async with sending(redis, settings, webhooks):
        await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.FAILED))
        await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.FAILED, 2))
        assert len(receiver.messages) == 1
        assert (await webhook_deliveries.count(redis)).gone == ["a"]

        page = await webhook_deliveries.list_deliveries(redis, 1)
        await webhook_deliveries.resend(redis, page.deliveries[0].delivery_id)
        await until(lambda: asyncio.sleep(0, len(receiver.messages) == 2))


async def test_an_endpoint_that_is_no_longer_configured_fails(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/500"))):
        await put_entry(redis)
        await until(lambda: asyncio.sleep(0, len(receiver.messages) >= 1))
    async with sending(redis, settings, configure(tmp_path, b=receiver.url("/ok"))):
        await until(lambda: has_ended(redis, DeliveryState.FAILED))

    assert (await the_delivery(redis)).last_error == "endpoint_gone"


async def test_an_endpoint_that_hangs_holds_its_own_places_only(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two workers, it has four messages at a time, and the other endpoint gets all of its own meanwhile."""
    monkeypatch.setattr(webhook_sender, "TRY_MAX_S", 60)
    monkeypatch.setattr(webhook_loop, "LEASE_S", 120)
    webhooks = configure(tmp_path, hangs=receiver.url("/hang"), works=receiver.url("/ok"))
    async with sending(redis, settings, webhooks), sending(redis, settings, webhooks):
        for _ in range(20):
            await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.DELIVERED, 20))

    assert len(receiver.at("/ok")) == 20
    assert receiver.most_open["/hang"] == webhook_deliveries.PLACES


async def test_a_full_outbox_delays_no_message_and_opens_no_more_than_allowed(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs end faster than the outbox is emptied, and one receiver hangs."""
    opened: list[int] = []
    fan_out, end_overflow = webhook_outbox.fan_out, webhook_deliveries.end_overflow

    async def fan_out_some(*args: Any) -> bool:
        await put_entry(redis)
        await fan_out(*args)
        opened.append(sum((await webhook_deliveries.count_open(redis)).values()))
        return True

    monkeypatch.setattr(webhook_sender, "TRY_MAX_S", 60)
    monkeypatch.setattr(webhook_outbox, "fan_out", fan_out_some)
    monkeypatch.setattr(webhook_deliveries, "end_overflow", partial(end_overflow, open_max=10))
    async with sending(redis, settings, configure(tmp_path, hangs=receiver.url("/hang"), works=receiver.url("/ok"))):
        await until(lambda: asyncio.sleep(0, len(receiver.at("/ok")) >= 20))

    assert max(opened) <= 10 + 2


async def test_a_name_server_that_hangs_delays_its_own_endpoints_only(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup holds its thread for half a minute, whatever the time limit of the try is."""
    is_over = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def look_up(host: str, *args: Any, **options: Any) -> Any:
        if host.startswith("hangs"):
            is_over.wait(30)
        return getaddrinfo(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = {f"hangs{number}": f"http://hangs{number}.invalid/" for number in range(12)}
    webhooks = configure(tmp_path, **urls, works=receiver.url("/ok").replace("127.0.0.1", "localhost"))
    try:
        async with sending(redis, settings, webhooks, allow="localhost"):
            await put_entry(redis)
            for _ in range(5):
                await put_entry(redis)
            await until(lambda: has_ended(redis, DeliveryState.DELIVERED, 6))
    finally:
        is_over.set()


async def test_private_addresses_are_refused(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/ok")), allow="10.1.1.1"):
        await put_entry(redis)

        async def is_refused() -> bool:
            page = await webhook_deliveries.list_deliveries(redis, 1)
            return bool(page.deliveries) and "STAGEBUS_EGRESS_ALLOW" in page.deliveries[0].last_error

        await until(is_refused)

    assert receiver.messages == []


async def test_a_worker_that_stops_gives_its_tries_back(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "TRY_MAX_S", 10)
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/hang"))):
        await put_entry(redis)
        await until(lambda: asyncio.sleep(0, receiver.open["/hang"] == 1))
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/ok"))):
        await until(lambda: has_ended(redis, DeliveryState.DELIVERED))

    assert [message.path for message in receiver.messages] == ["/hang", "/ok"]


async def test_an_idle_loop_asks_redis_next_to_nothing(
    redis: Redis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    async with sending(redis, settings, configure(tmp_path, a=receiver.url("/ok"))):
        await put_entry(redis)
        await until(lambda: has_ended(redis, DeliveryState.DELIVERED))
        await asyncio.sleep(0.2)
        before = await sent(redis)
        await asyncio.sleep(2)

        assert await sent(redis) - before <= 2, "the counter's own commands"


async def test_runs_of_all_partitions_of_a_cluster_are_told(
    cluster: ClusterRedis, settings: Settings, receiver: WebhookReceiver, tmp_path: Path
) -> None:
    webhooks = configure(tmp_path, all=receiver.url("/ok"))
    told = settings.model_copy(update={"webhooks": tmp_path / "webhooks.toml"})
    async with sending(cluster, settings, webhooks) as results:
        run_ids = []
        for number in range(6):
            run_ids.append(
                await run_store.create_run(
                    cluster, told, tenant="t", model="m", request={}, idempotency_key=str(number)
                )
            )
            await run_store.cancel_run(cluster, told, run_ids[-1])
        await until(lambda: len(results) == 6)

    assert len({partition_of(run_id) for run_id in run_ids}) > 2
    assert {message.run_id for message in receiver.messages} == set(run_ids)
    counts = await webhook_deliveries.count(cluster)
    assert (counts.undistributed, sum(counts.open.values())) == (0, 0)
    page = await webhook_deliveries.list_deliveries(cluster, 10, state=DeliveryState.DELIVERED)
    await webhook_deliveries.resend(cluster, page.deliveries[0].delivery_id)
    assert (await webhook_deliveries.count_open(cluster)) == {"all": 1}
