import asyncio

from redis.asyncio import Redis

from stagebus.shared.storage import keys
from stagebus.shared.store import tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription

SOON_S = 0.05


def tool(name: str, description: str = "d") -> ToolDescription:
    return ToolDescription(name=name, description=description, parameters={"type": "object"})


async def names(redis: Redis) -> list[str]:
    return [tool.name for tool in await tool_catalog.read_tools(redis)]


async def test_published_tools_are_read_by_name(redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [tool("b"), tool("a", "old")])
    await tool_catalog.publish_tools(redis, [tool("a", "new")])

    assert await tool_catalog.read_tools(redis) == [tool("a", "new"), tool("b")]


async def test_worker_without_tools_publishes_nothing(redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [])
    await tool_catalog.keep_tools(redis, [])

    assert await tool_catalog.read_tools(redis) == []


async def test_published_tools_are_found_by_name(redis: Redis) -> None:
    assert await tool_catalog.find_published(redis) == set()  # no worker has started yet
    await tool_catalog.publish_tools(redis, [tool("a")])

    assert await tool_catalog.find_published(redis) == {"a"}


async def test_tool_without_a_worker_is_removed(redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [tool("gone"), tool("kept")])
    async with asyncio.timeout(5):
        while "gone" in await names(redis):
            await tool_catalog.keep_tools(redis, [tool("kept")], SOON_S)

    assert await names(redis) == ["kept"]
    assert await tool_catalog.find_published(redis) == {"kept"}
    assert await redis.zcard(keys.TOOLS_SEEN) == 1


async def test_tool_that_any_worker_refreshes_stays(redis: Redis) -> None:
    """A worker that lost a tool no longer publishes it; one that still has it does."""
    ours, theirs = [tool("a")], [tool("a"), tool("b")]
    await tool_catalog.publish_tools(redis, theirs)
    loop = asyncio.get_running_loop()
    end = loop.time() + 3 * SOON_S
    while loop.time() < end:
        await tool_catalog.keep_tools(redis, ours, SOON_S)
        await tool_catalog.keep_tools(redis, theirs, SOON_S)

    assert await names(redis) == ["a", "b"]


async def test_tools_stay_while_no_worker_refreshes_any(redis: Redis) -> None:
    """Between the last worker of one deployment and the first of the next, runs can still be made."""
    await tool_catalog.publish_tools(redis, [tool("a")], SOON_S)
    await redis.zadd(keys.TOOLS_SEEN, {"a": 1})  # ms: in 1970

    assert await names(redis) == ["a"]
    assert await tool_catalog.find_published(redis) == {"a"}
    assert await redis.ttl(keys.TOOLS) == await redis.ttl(keys.TOOLS_SEEN) == -1


async def test_refresh_publishes_tools_again_that_redis_lost(redis: Redis) -> None:
    await tool_catalog.publish_tools(redis, [tool("a"), tool("b")])
    await redis.hdel(keys.TOOLS, "a")
    await tool_catalog.keep_tools(redis, [tool("a", "newer"), tool("b", "newer")])

    assert await tool_catalog.read_tools(redis) == [tool("a", "newer"), tool("b")]
