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


async def test_tools_are_published_as_they_change(redis, publishing):
    await until_published(redis, "a", "b")
    await redis.delete(keys.TOOLS)
    Toolset.__init__(publishing, {"b": publishing.get("b")})
    publishing.changed.set()

    await until_published(redis, "b")


async def test_tools_are_said_again_without_a_change(redis, publishing, monkeypatch):
    """And published anew where Redis came back without them."""
    monkeypatch.setattr(tool_catalog, "KEEP_S", 0.01)
    publishing.changed.set()
    await until_published(redis, "a", "b")
    await redis.delete(keys.TOOLS, keys.TOOLS_SEEN)

    await until_published(redis, "a", "b")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(ConnectionError("away"), "waits for Redis"), (ValueError("a bug"), "could not be published")],
)
async def test_no_trouble_ends_the_publishing(redis, publishing, monkeypatch, caplog, trouble, words):
    monkeypatch.setattr("stagebus.worker.tools.catalog_publisher.AWAY_BACKOFF_S", 0.01)
    await until_published(redis, "a", "b")
    publish = tool_catalog.keep_tools
    failures = iter([trouble, trouble])

    async def fail(*args):
        for failure in failures:
            raise failure
        await publish(*args)

    monkeypatch.setattr(tool_catalog, "keep_tools", fail)
    await redis.delete(keys.TOOLS)
    publishing.changed.set()

    await until_published(redis, "a", "b")
    assert caplog.text.count(words) == 2
