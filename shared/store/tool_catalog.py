"""The catalog of tools: published by the workers, read by the gateways.

sb:tools   get_weather   {"name": "get_weather", "description": "…", "parameters": {<JSON Schema>}}

The hash is the union of the tools of all workers, which refresh theirs periodically. A refresh removes the tools that no
worker has refreshed for `TOOLS_TTL_S`, so while no worker runs, the catalog stays. A worker that lacks a run's tool
reports it by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import Redis

TOOLS_TTL_S: Final = 30.0
# Two refreshes may be lost before a tool is removed.
KEEP_S: Final = TOOLS_TTL_S / 3

_PUBLISH: Final = Script("publish_tools")

# The tool with which a model asks a person.
ASK_USER: Final = "ask_user"


class ToolDescription(BaseModel):
    """A tool as models and clients of `GET /tools` see it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    parameters: dict[str, Any] = Field(description="the JSON Schema of its arguments")
    requires_approval: bool = Field(default=False, description="whether a call waits for a person's approval")
    deferred: bool = Field(default=False, description="whether the tool may leave a call's result to another system")


async def _publish(redis: Redis, described: Mapping[str, bytes], ttl_s: float) -> set[str]:
    """Refreshes a worker's tools and drops those that no worker has published for `ttl_s`.

    Args:
        described: descriptions by name; empty if the tool was published before.

    Returns:
        The names whose descriptions Redis does not have.
    """
    args = [part for name, description in described.items() for part in (name, description)]
    return {
        name.decode()
        for name in await _PUBLISH(
            redis, [keys.TOOLS, partitioning_of(redis).seen(keys.TOOLS)], [round(ttl_s * 1000), *args]
        )
    }


async def publish_tools(redis: Redis, tools: Iterable[ToolDescription], ttl_s: float = TOOLS_TTL_S) -> None:
    """Publishes a worker's tools for `ttl_s`; a newer description replaces an older one."""
    await _publish(redis, {tool.name: orjson.dumps(tool.model_dump()) for tool in tools}, ttl_s)


async def keep_tools(redis: Redis, tools: Sequence[ToolDescription], ttl_s: float = TOOLS_TTL_S) -> None:
    """Refreshes published tools by their names, and publishes again those that Redis has lost."""
    missing = await _publish(redis, dict.fromkeys((tool.name for tool in tools), b""), ttl_s)
    if missing:
        await publish_tools(redis, [tool for tool in tools if tool.name in missing], ttl_s)


async def read_tools(redis: Redis) -> list[ToolDescription]:
    """Returns every published tool, by name; an empty list if no worker has ever started."""
    described = await redis.hvals(keys.TOOLS)  # type: ignore[misc]
    return sorted((ToolDescription.model_validate_json(tool) for tool in described), key=lambda tool: tool.name)


async def find_published(redis: Redis) -> set[str]:
    """Returns the names of every published tool; an empty set if no worker has ever started."""
    return {name.decode() for name in await redis.hkeys(keys.TOOLS)}  # type: ignore[misc]
