"""The pub/sub connection against a real server: confirmed subscriptions, and every way to lose the connection."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import pubsub, redis_client
from stagebus.shared.storage.pubsub import Channels, Unsubscribed
from tests.support.proxy import Proxy
from tests.support.waiting import until, until_equal


class Listener:
    """Channels, what they heard and how often they may have missed something."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.heard: list[tuple[str, bytes]] = []
        self.reconnected = 0
        self.channels = Channels(redis, self._on_reconnected)

    def _on_reconnected(self) -> None:
        self.reconnected += 1

    async def subscribe(self, channel: str) -> None:
        await asyncio.wait_for(self.channels.subscribe(channel, lambda data: self.heard.append((channel, data))), 10)

    async def connection_id(self) -> bytes:
        """The server's name for the one connection that listens."""
        (connection,) = [c for c in await self.redis.client_list(_type="pubsub") if int(c["sub"])]
        return connection["id"]


async def subscribers(redis: Redis, channel: str) -> int:
    return int((await redis.pubsub_numsub(channel))[0][1])


@pytest.fixture
async def listener(redis: Redis) -> AsyncIterator[Listener]:
    listener = Listener(redis)
    await listener.channels.start()
    yield listener
    await asyncio.wait_for(listener.channels.stop(), 5)


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
async def far(redis: Redis, proxy: Proxy) -> AsyncIterator[Listener]:
    """A listener whose network the test has in its hands; not started."""
    client = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout_s=1))
    listener = Listener(client)
    yield listener
    await asyncio.wait_for(listener.channels.stop(), 5)
    await redis_client.close(client)


async def test_message_right_after_subscribe_arrives(redis: Redis, listener: Listener) -> None:
    for channel in (f"c{i}" for i in range(20)):
        await listener.subscribe(channel)
        assert await redis.publish(channel, b"x") == 1, "the server knows of it"

    await until(lambda: len(listener.heard) == 20)
    assert listener.heard == [(f"c{i}", b"x") for i in range(20)]


async def test_handler_gets_its_channel_until_unsubscribed(redis: Redis, listener: Listener) -> None:
    await listener.subscribe("a")
    await listener.subscribe("b")
    await listener.channels.unsubscribe("a")
    await listener.channels.unsubscribe("a")
    await until_equal(lambda: subscribers(redis, "a"), 0)
    await redis.publish("a", b"1")
    await redis.publish("b", b"\x00\xff")

    await until(lambda: bool(listener.heard))
    assert listener.heard == [("b", b"\x00\xff")]


async def test_channel_subscribed_again_immediately_gets_messages(redis: Redis, listener: Listener) -> None:
    """The last client of a run leaves as the next one comes."""
    for _ in range(20):
        await listener.subscribe("a")
        await listener.channels.unsubscribe("a")  # does not wait for the server's answer
        await listener.subscribe("a")

    assert await redis.publish("a", b"x") == 1
    await until(lambda: listener.heard == [("a", b"x")])


async def test_killed_connection_is_reopened_with_every_channel(
    redis: Redis, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "SUBSCRIBE_BATCH_CHANNELS", 3)
    for i in range(10):
        await listener.subscribe(f"c{i}")
    await redis.publish("c0", b"before")
    await until(lambda: bool(listener.heard))
    told = listener.reconnected
    await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: listener.reconnected > told)

    assert [await redis.publish(f"c{i}", b"after") for i in range(10)] == [1] * 10, "told only when all are back"
    await until(lambda: len(listener.heard) == 11)
    assert listener.heard == [("c0", b"before"), *((f"c{i}", b"after") for i in range(10))]
    assert listener.reconnected == told + 1


async def test_subscription_waits_while_redis_is_away(far: Listener, proxy: Proxy, redis: Redis) -> None:
    await proxy.close()
    await far.channels.start()
    waiting = asyncio.create_task(far.subscribe("a"))
    done, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not done
    assert not far.channels.is_connected

    await proxy.__aenter__()
    await waiting
    await redis.publish("a", b"x")
    await until(lambda: far.heard == [("a", b"x")])
    assert far.channels.is_connected


async def test_cut_network_costs_a_reconnect(far: Listener, proxy: Proxy, redis: Redis) -> None:
    await far.channels.start()
    await far.subscribe("a")
    for round_number in range(1, 4):
        told = far.reconnected
        proxy.cut()
        await until(lambda told=told: far.reconnected > told)
        await redis.publish("a", b"%d" % round_number)
        await until(lambda round_number=round_number: len(far.heard) == round_number)

    assert far.heard == [("a", b"1"), ("a", b"2"), ("a", b"3")]


async def test_deaf_connection_is_given_up(far: Listener, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side closes it, but the server no longer sends anything."""
    monkeypatch.setattr(pubsub, "CANARY_S", 0.05)
    await far.channels.start()
    await far.subscribe("a")
    told = far.reconnected
    assert far.channels._protocol is not None
    far.channels._protocol.send("UNSUBSCRIBE", far.channels._canary, "a")

    await until(lambda: far.reconnected > told)
    assert await redis.publish("a", b"x") == 1
    await _hear_canaries(redis, 4)
    assert far.reconnected == told + 1, "the new one is not given up in its turn"


async def test_canaries_are_few_while_nobody_listens(
    far: Listener, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as many as ever as soon as somebody does."""
    monkeypatch.setattr(pubsub, "CANARY_S", 0.02)
    await far.channels.start()
    began = time.monotonic()
    await _hear_canaries(redis, 3)
    assert time.monotonic() - began >= 2 * pubsub.IDLE_CANARY_EVERY * pubsub.CANARY_S

    monkeypatch.setattr(pubsub, "IDLE_CANARY_EVERY", 10**9)
    await far.subscribe("a")
    await _hear_canaries(redis, 3)


async def _hear_canaries(redis: Redis, count: int) -> None:
    """Waits for so many canaries."""
    async with asyncio.timeout(10), redis.pubsub() as ear:
        await ear.psubscribe("sb:canary:*")
        heard = 0
        while heard < count:
            heard += await ear.get_message(ignore_subscribe_messages=True, timeout=1) is not None


async def test_stop_ends_promptly_and_leaves_nothing(redis: Redis) -> None:
    others = asyncio.all_tasks()
    listener = Listener(redis)
    await listener.channels.start()
    await listener.subscribe("a")
    await asyncio.wait_for(listener.channels.stop(), 2)

    assert asyncio.all_tasks() == others
    await until_equal(lambda: redis.client_list(_type="pubsub"), [])


@pytest.mark.parametrize("trouble", ["refuses", "hangs"])
async def test_stop_is_prompt_while_redis_is_away(far: Listener, proxy: Proxy, trouble: str) -> None:
    if trouble == "refuses":
        await proxy.close()
    else:
        proxy.hang()
    others = asyncio.all_tasks()
    await far.channels.start()
    tasks = asyncio.all_tasks() - others
    await asyncio.wait(tasks, timeout=0.1)

    await asyncio.wait_for(far.channels.stop(), 2)
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_subscribe_disturbs_no_other_subscriber(redis: Redis, listener: Listener, turns: int) -> None:
    """One browser's reload must not cost every other stream a reconnect."""
    await listener.subscribe("others")
    connection, told = await listener.connection_id(), listener.reconnected
    leaving = asyncio.create_task(listener.channels.subscribe("mine", print))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    await listener.channels.unsubscribe("mine")

    await listener.subscribe("later")
    assert await listener.connection_id() == connection
    assert listener.reconnected == told
    assert {name for name in await redis.pubsub_channels() if not name.startswith(b"sb:canary")} == {
        b"others",
        b"later",
    }


async def test_unsubscribe_while_redis_is_away_leaves_nothing(far: Listener, proxy: Proxy) -> None:
    await proxy.close()
    await far.channels.start()
    for i in range(10):
        waiting = asyncio.create_task(far.channels.subscribe(f"c{i}", print))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await far.channels.unsubscribe(f"c{i}")

    assert set(far.channels._handlers) == {far.channels._canary}
    assert far.channels._confirmations == {}


async def test_canary_that_cannot_be_sent_does_not_count_as_missing(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool without a free connection: a reconnect would make every stream ask for one more page."""
    monkeypatch.setattr(pubsub, "CANARY_S", 0.02)
    failures = 0
    listener = Listener(redis)
    await listener.channels.start()
    await listener.subscribe("a")
    connection, told = await listener.connection_id(), listener.reconnected

    async def publish(*_: object) -> None:
        nonlocal failures
        failures += 1
        raise RedisConnectionError("No connection available.")

    with monkeypatch.context() as patch:
        patch.setattr(redis, "publish", publish)
        await until(lambda: failures >= 8)

    assert await listener.connection_id() == connection
    assert listener.reconnected == told
    await listener.channels.stop()


async def test_garbage_from_the_server_costs_a_reconnect(redis: Redis, listener: Listener) -> None:
    """An error in the place of a message, as an ACL may answer."""
    await listener.subscribe("a")
    told = listener.reconnected
    assert listener.channels._protocol is not None
    listener.channels._protocol.send("NO-SUCH-COMMAND")

    await until(lambda: listener.reconnected > told)
    assert await redis.publish("a", b"x") == 1


async def test_failing_handler_costs_others_no_message(redis: Redis, listener: Listener) -> None:
    """One run's bad message must not make every other stream of the process read its log."""

    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    await listener.channels.subscribe("bad", fail)
    await listener.subscribe("good")
    told = listener.reconnected
    await redis.publish("bad", b"x")
    await redis.publish("good", b"y")

    await until(lambda: listener.heard == [("good", b"y")])
    assert listener.reconnected == told


async def test_late_confirmation_does_not_confirm_a_new_subscription(redis: Redis) -> None:
    """Between the two, the server drops messages on the channel."""
    sent: list[tuple[object, ...]] = []
    channels = Channels(redis, on_reconnected=lambda: None)
    channels._protocol = SimpleNamespace(send=lambda *args: sent.append(args))  # type: ignore[assignment]
    first = asyncio.create_task(channels.subscribe("a", print))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await channels.unsubscribe("a")
    second = asyncio.create_task(channels.subscribe("a", print))
    await asyncio.sleep(0)
    assert [command for command, _ in sent] == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]

    channels._on_reply([b"subscribe", b"a", 1])
    channels._on_reply([b"unsubscribe", b"a", 0])
    done, _ = await asyncio.wait({second}, timeout=0.01)
    assert not done
    channels._on_reply([b"subscribe", b"a", 1])
    await second


async def test_unsubscribe_ends_a_subscribe_that_still_waits(redis: Redis) -> None:
    """Its confirmation will not come; a later subscription is confirmed as ever. The same holds while Redis is away."""
    channels = Channels(redis, on_reconnected=lambda: None)
    away = asyncio.create_task(channels.subscribe("a", print))
    await asyncio.sleep(0)
    await channels.unsubscribe("a")
    with pytest.raises(Unsubscribed):
        await asyncio.wait_for(away, 1)
    channels._protocol = SimpleNamespace(send=lambda *_: None)  # type: ignore[assignment]
    first, second = (asyncio.create_task(channels.subscribe("a", print)) for _ in range(2))
    await asyncio.sleep(0)
    await channels.unsubscribe("a")
    later = asyncio.create_task(channels.subscribe("a", print))
    for reply in (b"subscribe", b"subscribe", b"unsubscribe", b"subscribe"):
        await asyncio.sleep(0)
        channels._on_reply([reply, b"a", 1])

    for waiting in (first, second):
        with pytest.raises(Unsubscribed):
            await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(later, 1)
    assert channels._confirmations == {}
