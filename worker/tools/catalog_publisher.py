"""Publishes a worker's tools to the catalog in Redis, at each change and before the entry expires."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.store import tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription
from stagebus.worker.tools.registry import ToolRegistry

logger = logging.getLogger(__name__)

FAILURE_BACKOFF_S: Final = 1.0


async def publish_forever(redis: Redis, tools: ToolRegistry, published: list[ToolDescription]) -> None:
    """Publishes the tools at each change and renews the entry in between. `published` are the tools already there."""

    async def publish() -> None:
        nonlocal published
        described = tools.describe()
        if described == published:
            await tool_catalog.keep_tools(redis, described)
        else:
            await tool_catalog.publish_tools(redis, described)
            logger.info("published %d tools", len(described))
        published = described

    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(tool_catalog.KEEP_S):
                await tools.changed.wait()
        tools.changed.clear()
        try:
            await retry_while_redis_is_down(publish, "catalog of tools")
        except Exception:
            # If this task ended, gateways would forget this worker's tools after half a minute.
            logger.exception("publishing the tools failed; trying again")
            tools.changed.set()
            await asyncio.sleep(FAILURE_BACKOFF_S)
