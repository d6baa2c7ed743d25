from redis.asyncio import Redis

from shared import catalog
from shared.catalog import ToolDescription


def tool(name: str, description: str = "d") -> ToolDescription:
    return ToolDescription(name=name, description=description, parameters={"type": "object"})


async def test_what_workers_publish_is_read_by_name(redis: Redis) -> None:
    await catalog.publish_tools(redis, [tool("b"), tool("a", "old")])
    await catalog.publish_tools(redis, [tool("a", "new")])

    assert await catalog.read_tools(redis) == [tool("a", "new"), tool("b")]


async def test_worker_without_tools_publishes_nothing(redis: Redis) -> None:
    await catalog.publish_tools(redis, [])

    assert await catalog.read_tools(redis) == []


async def test_unknown_tools_are_those_that_nobody_published(redis: Redis) -> None:
    assert await catalog.find_unknown(redis, ["a"]) == set()  # no worker has started yet
    await catalog.publish_tools(redis, [tool("a")])

    assert await catalog.find_unknown(redis, ["a", "b"]) == {"b"}
    assert await catalog.find_unknown(redis, []) == set()
