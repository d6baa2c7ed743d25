"""Keeping the catalogue true: a worker's tools are published as they change, and said again meanwhile."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription
from stagebus.worker.tools.registry import ToolRegistry

logger = logging.getLogger(__name__)

AWAY_BACKOFF_S: Final = 1.0


async def publish_forever(redis: Redis, tools: ToolRegistry, published: list[ToolDescription]) -> None:
    """Publish the tools at each change, and keep them known in between; `published` already are."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(tools.changed.wait(), tool_catalog.KEEP_S)
        tools.changed.clear()
        try:
            described = tools.describe()
            if described == published:
                await tool_catalog.keep_tools(redis, described)
            else:
                await tool_catalog.publish_tools(redis, described)
                logger.info("%d tools are published", len(described))
            published = described
            continue
        except REDIS_AWAY as exc:
            logger.warning("the tools' catalogue waits for Redis: %s", exc)
        except Exception:
            # Half a minute after this task's end the gateways would know no tool of this worker's any more.
            logger.exception("the tools could not be published; trying again")
        tools.changed.set()
        await asyncio.sleep(AWAY_BACKOFF_S)
