import asyncio

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.store import tool_catalog
from stagebus.worker.tools.catalog_publisher import publish_forever
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.toolset import Toolset
from tests.support.waiting import until_equal


@pytest.fixture
async def publishing(redis):
    """A registry whose tools are published as they change."""
    registry = ToolRegistry([tool(name="a")(lambda: 1), tool(name="b")(lambda: 2)], Settings())
    task = asyncio.create_task(publish_forever(redis, registry, []))
    registry.changed.set()
    yield registry
    await cancel_and_wait(task)
    await registry.aclose()


async def until_published(redis, *names):
    async def published() -> list[str]:
        return [tool.name for tool in await tool_catalog.read_tools(redis)]

    await until_equal(published, list(names))


async def test_catalog_publisher_publishes_changes(redis, publishing):
    await until_published(redis, "a", "b")
    await redis.delete(keys.TOOLS)
    Toolset.__init__(publishing, {"b": publishing.get("b")})
    publishing.changed.set()

    await until_published(redis, "b")


async def test_catalog_publisher_renews_the_entry_without_a_change(redis, publishing, monkeypatch):
    """It also publishes the tools again if Redis has lost them."""
    monkeypatch.setattr(tool_catalog, "KEEP_S", 0.01)
    publishing.changed.set()
    await until_published(redis, "a", "b")
    await redis.delete(keys.TOOLS, keys.TOOLS_SEEN)

    await until_published(redis, "a", "b")


@pytest.mark.parametrize(
    ("failure", "message", "times"),
    [
        (ConnectionError("away"), "catalog of tools: waiting for Redis", 1),
        (ValueError("a bug"), "publishing the tools failed", 2),
    ],
)
async def test_catalog_publisher_survives_failures(redis, publishing, monkeypatch, caplog, failure, message, times):
    monkeypatch.setattr("stagebus.worker.tools.catalog_publisher.FAILURE_BACKOFF_S", 0.01)
    await until_published(redis, "a", "b")
    publish = tool_catalog.keep_tools
    failures = iter([failure, failure])

    async def fail(*args):
        for raised in failures:
            raise raised
        await publish(*args)

    monkeypatch.setattr(tool_catalog, "keep_tools", fail)
    await redis.delete(keys.TOOLS)
    publishing.changed.set()

    await until_published(redis, "a", "b")
    assert caplog.text.count(message) == times
