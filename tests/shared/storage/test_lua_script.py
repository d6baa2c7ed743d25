"""Scripts on a cluster publish to the shard of their keys."""

import re
from importlib.resources import files

import pytest
from redis.asyncio import Redis

from stagebus.shared.storage.cluster_connection import slot_of
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.raw_connection import RedisProtocol
from tests.support.waiting import until

LUA = sorted((path.name, path.read_text()) for path in (files("stagebus.shared.storage") / "lua").rglob("*.lua"))  # type: ignore[attr-defined]


def test_every_script_that_publishes_can_be_made_to_publish_to_a_shard() -> None:
    """The substitution of the command's name is by text."""
    code = {name: re.sub(r"--.*", "", text) for name, text in LUA}
    publishing = {name for name, text in code.items() if re.search(r"publish['\"]", text, re.IGNORECASE)}

    assert len(publishing) > 3
    assert {
        name for name in publishing if re.search(r"publish['\"]", code[name].replace("'PUBLISH'", ""), re.IGNORECASE)
    } == set()
    assert "'SPUBLISH'" in Script("slot_release").sharded_text
    assert "'PUBLISH'" not in Script("slot_release").sharded_text


@pytest.mark.parametrize("kind", ["one server", "cluster"])
async def test_message_of_a_script_arrives(redis: Redis, cluster: ClusterRedis, kind: str) -> None:
    client = cluster if kind == "cluster" else redis
    script, keys = Script("slot_release"), [f"{{p}}{number}" for number in range(4)]
    heard: list[bytes] = []
    node = client.client_of(await client.slots.find_node(slot_of(("GET", keys[0])))) if kind == "cluster" else client
    listening = await RedisProtocol.open(node, lambda reply: heard.append(reply[0]))
    listening.send("SSUBSCRIBE" if kind == "cluster" else "SUBSCRIBE", keys[3])
    await until(lambda: heard)
    await client.zadd(keys[1], {"another": 1})
    await script(client, keys, ["token"])
    await client.delete(keys[1])

    await until(lambda: heard[1:] == [b"smessage" if kind == "cluster" else b"message"])
    listening.close(ConnectionError())
    await listening.wait_closed()
