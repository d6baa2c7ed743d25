"""Commands to a cluster: the node of each, and every answer that is not a reply, with scripted nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from stagebus.shared.config.redis_url import Address, RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import SLOTS, key_slot
from stagebus.shared.storage import cluster_connection, cluster_redis, cluster_route, slot_map
from stagebus.shared.storage.cluster_connection import ClusterConnection, slot_of
from stagebus.shared.storage.cluster_redis import ClusterRedis, connect_cluster
from stagebus.shared.storage.cluster_route import Redirection
from stagebus.shared.storage.lua_script import Script
from tests.support.scripted_redis import OK, ScriptedRedis, scripted_redis
from tests.support.waiting import until, until_equal

KEY = "{a}k"
SLOT = key_slot(KEY)


def slots_reply(*ranges: tuple[int, int, int]) -> bytes:
    """The reply to CLUSTER SLOTS: first slot, last slot, port."""
    entries = [b"*3\r\n:%d\r\n:%d\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % entry for entry in ranges]
    return b"*%d\r\n%b" % (len(ranges), b"".join(entries))


def error(text: str) -> bytes:
    return f"-{text}\r\n".encode()


class Two(NamedTuple):
    """Two nodes, the first of which has all slots, and a client."""

    first: ScriptedRedis
    second: ScriptedRedis
    redis: ClusterRedis

    @property
    def connection(self) -> ClusterConnection:
        return self.redis.cluster_connection

    def move_all(self) -> None:
        """Both nodes say from now on that the second one has all slots."""
        for node in (self.first, self.second):
            node.replies["CLUSTER"] = slots_reply((0, SLOTS - 1, self.second.port))

    def moved_to(self, node: ScriptedRedis) -> bytes:
        return error(f"MOVED {SLOT} 127.0.0.1:{node.port}")

    def asks(self, node: ScriptedRedis) -> bytes:
        return error(f"ASK {SLOT} 127.0.0.1:{node.port}")


@pytest.fixture
async def two(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(slot_map, "REFRESH_PAUSE_S", 0)
    monkeypatch.setattr(cluster_route, "TRY_AGAIN_S", 0)
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(scripted_redis()) for _ in range(2)]
        for node in (first, second):
            node.replies["CLUSTER"] = slots_reply((0, SLOTS - 1, first.port))
        settings = Settings(redis_timeout_s=2)
        redis = connect_cluster(RedisUrl.parse(f"redis+cluster://127.0.0.1:{first.port}"), settings)
        stack.push_async_callback(redis.aclose)
        yield Two(first, second, redis)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"), (("HSET", "{a}b", "f", "v"), "a"), (("EVAL", "return 1", 1, "{a}b", "x"), "a"),
        (("EVALSHA", "0" * 40, "2", "k", "l"), "k"), (("EVAL", "return 1", 0, "x"), None), (("TIME",), None),
        (("INFO", "server"), None), (("SPUBLISH", "c", "x"), "c"), (("PUBLISH", "c", "x"), None),
        (("MEMORY USAGE", "k"), "k"), (("CONFIG GET", "x"), None), (("PING",), None),
    ],
)  # fmt: skip
def test_slot_of_a_command_is_that_of_its_first_key(command: tuple[str, ...], key: str | None) -> None:
    assert slot_of(command) == (None if key is None else key_slot(key))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MOVED 5 h:1", Redirection(5, Address("h", 1), is_asking=False)),
        ("ASK 5 ::1:7", Redirection(5, Address("::1", 7), is_asking=True)),
        ("MOVED 5 [::1]:7", Redirection(5, Address("::1", 7), is_asking=False)),
        ("MOVED 5 :7", Redirection(5, Address("asked", 7), is_asking=False)),
        ("ASK 5 ?:7", Redirection(5, Address("asked", 7), is_asking=True)),
        ("MOVEDX 5 h:1", None), ("TRYAGAIN later", None),
    ],
)  # fmt: skip
def test_redirection_is_read_from_the_error(text: str, expected: Redirection | None) -> None:
    assert Redirection.parse(ResponseError(text), Address("asked", 1)) == expected
    assert Redirection.parse(RedisConnectionError(text), Address("asked", 1)) is None


async def test_moved_command_is_sent_to_the_other_node_and_later_ones_directly(two: Two) -> None:
    two.first.replies["SET"] = two.moved_to(two.second)
    two.move_all()
    two.first.replies["CLUSTER"] = [slots_reply((0, SLOTS - 1, two.first.port)), two.first.replies["CLUSTER"]]  # type: ignore[list-item]
    assert await two.connection.execute_command("SET", KEY, "x") == b"OK"
    assert await two.connection.execute_command("SET", KEY, "y") == b"OK"

    assert two.first.sent("SET") == [f"SET {KEY} x"]
    assert two.second.sent("SET") == [f"SET {KEY} x", f"SET {KEY} y"]
    await until_equal(two.redis.slots.primaries, [Address("127.0.0.1", two.second.port)])


async def test_command_that_is_redirected_in_circles_is_a_connection_error(two: Two) -> None:
    """During a failover two nodes may name one another. Callers wait for it as for any outage."""
    two.first.replies["SET"], two.second.replies["SET"] = two.moved_to(two.second), two.moved_to(two.first)
    with pytest.raises(RedisConnectionError, match="do not agree"):
        await two.connection.execute_command("SET", KEY, "x")

    assert len(two.first.sent("SET") + two.second.sent("SET")) == cluster_route.REDIRECTIONS_MAX + 1


async def test_node_that_names_itself_is_a_connection_error(two: Two) -> None:
    two.first.replies["SET"] = two.moved_to(two.first)
    with pytest.raises(RedisConnectionError, match="do not agree"):
        await two.connection.execute_command("SET", KEY, "x")


async def test_asked_node_gets_the_command_once_behind_asking(two: Two) -> None:
    two.first.replies["SET"] = [two.asks(two.second), OK]
    assert await two.connection.execute_command("SET", KEY, "x") == b"OK"
    assert await two.connection.execute_command("SET", KEY, "y") == b"OK"

    assert two.second.commands == ["ASKING", f"SET {KEY} x"]
    assert two.first.sent("SET") == [f"SET {KEY} x", f"SET {KEY} y"], "the slot has not moved yet"


async def test_command_whose_keys_are_partly_moved_waits_and_goes_back_to_the_slots_node(two: Two) -> None:
    two.first.replies["SET"] = [two.asks(two.second), error("TRYAGAIN later"), two.moved_to(two.second)]
    two.second.replies["SET"] = [error("TRYAGAIN later"), OK]
    assert await two.connection.execute_command("SET", KEY, "x") == b"OK"

    assert two.first.sent("ASKING", "SET") == [f"SET {KEY} x"] * 3
    assert two.second.sent("ASKING", "SET") == ["ASKING", f"SET {KEY} x", f"SET {KEY} x"]


async def test_command_that_waits_too_long_for_its_keys_fails_with_the_error(two: Two) -> None:
    """`is_passing` knows it, so that callers with more patience go on."""
    two.first.replies["SET"] = error("TRYAGAIN later")
    with pytest.raises(ResponseError, match="TRYAGAIN"):
        await two.connection.execute_command("SET", KEY, "x")

    assert len(two.first.sent("SET")) == cluster_route.TRY_AGAINS_MAX + 1


@pytest.mark.parametrize("text", ["CLUSTERDOWN Hash slot not served", "CLUSTERDOWN The cluster is down"])
async def test_cluster_that_is_down_is_the_callers_error_and_the_map_is_read(two: Two, text: str) -> None:
    two.first.replies["SET"] = error(text)
    await two.redis.slots.refresh()
    two.move_all()
    with pytest.raises(ResponseError, match=text):
        await two.connection.execute_command("SET", KEY, "x")

    await until_equal(two.redis.slots.primaries, [Address("127.0.0.1", two.second.port)])
    assert await two.connection.execute_command("SET", KEY, "x") == b"OK"


async def test_other_error_is_the_callers_and_the_map_stays(two: Two) -> None:
    two.first.replies["SET"] = error("WRONGTYPE no string")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await two.connection.execute_command("SET", KEY, "x")

    assert two.first.sent("CLUSTER", "SET") == ["CLUSTER SLOTS", f"SET {KEY} x"]


async def test_lost_node_fails_its_commands_and_the_map_is_read_from_another(two: Two) -> None:
    """A command in flight is not repeated here: the node may have executed it."""
    two.move_all()
    two.first.replies["CLUSTER"] = slots_reply((0, 0, two.second.port), (1, SLOTS - 1, two.first.port))
    assert await two.connection.execute_command("SET", KEY, "x") == b"OK"
    two.first.stop()
    with pytest.raises((RedisConnectionError, OSError)):
        await two.connection.execute_command("SET", KEY, "y")

    async def set_key() -> bool:
        try:
            return await two.connection.execute_command("SET", KEY, "z") == b"OK"
        except (RedisConnectionError, OSError):
            return False

    await until(set_key)
    assert two.second.sent("SET") == [f"SET {KEY} z"]


async def test_transaction_follows_its_keys_and_fails_with_the_cause(two: Two) -> None:
    aborted = error("EXECABORT Transaction discarded because of previous errors.")
    two.first.replies |= {"GET": [two.asks(two.second), two.moved_to(two.second)], "EXEC": aborted}
    two.second.replies |= {
        "EXEC": [b"*1\r\n+1\r\n", b"*1\r\n+2\r\n", aborted],
        "GET": [b"+QUEUED\r\n"] * 2 + [error("ERR no")],
    }
    assert await two.connection.transaction([("GET", KEY)]) == [b"1"]
    assert await two.connection.transaction([("GET", KEY)]) == [b"2"]
    with pytest.raises(ResponseError, match="no") as raised:
        await two.connection.transaction([("GET", KEY)])

    assert "EXECABORT" not in str(raised.value)
    assert two.second.sent("ASKING", "MULTI")[:2] == ["ASKING", "MULTI"]
    assert len(two.second.sent("ASKING")) == 1


async def test_script_that_a_node_does_not_know_is_sent_to_it_as_text(two: Two) -> None:
    """A promoted replica knows no script."""
    script = Script("revoke_ticket")
    two.first.replies["EVALSHA"] = two.moved_to(two.second)
    two.move_all()
    two.second.replies["EVALSHA"] = error("NOSCRIPT No matching script")
    two.second.replies["EVAL"] = b"$2\r\nok\r\n"

    assert await script(two.connection, [KEY], ["t", "x", 5, "s"]) == b"ok"
    assert len(two.second.sent("EVALSHA")) == len(two.second.sent("EVAL")) == 1


async def test_cancelled_command_leaves_the_others_their_replies(two: Two) -> None:
    two.first.replies["GET"] = [b"+1\r\n", b"+2\r\n", b"+3\r\n"]
    await two.redis.slots.refresh()
    await two.connection.execute_command("PING")
    tasks = [asyncio.create_task(two.connection.execute_command("GET", KEY)) for _ in range(3)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    tasks[1].cancel()

    assert [await tasks[0], await tasks[2]] == [b"1", b"3"]


async def test_command_without_a_key_goes_with_the_others_of_its_pipeline(two: Two) -> None:
    """TIME, for example, is then the clock of the node that has the keys."""
    for node in (two.first, two.second):
        node.replies |= {
            "CLUSTER": slots_reply((0, 99, two.first.port), (100, SLOTS - 1, two.second.port)),
            "TIME": b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n",
        }
    assert SLOT >= 100
    for _ in range(10):
        await two.redis.pipeline(transaction=False).time().get(KEY).execute()

    assert (len(two.first.sent("TIME")), len(two.second.sent("TIME"))) == (0, 10)


async def test_number_of_connections_and_clients_is_bounded(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open connections stay."""
    monkeypatch.setattr(cluster_connection, "NODES_SEEN_MAX", 3)
    monkeypatch.setattr(cluster_redis, "NODES_SEEN_MAX", 3)
    first = Address("127.0.0.1", two.first.port)
    await two.connection.execute_command("PING")
    connection = two.connection.to_node(first)
    gone = [two.connection.to_node(Address("127.0.0.1", port)) for port in range(1, 10)]

    assert two.connection.to_node(first) is connection
    assert two.connection.to_node(Address("127.0.0.1", 1)) is not gone[0]
    assert len(two.redis._clients) == 3
