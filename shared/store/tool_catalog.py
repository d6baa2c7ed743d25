"""The tools that runs may name: published by the workers, which have them, read by the gateways.

sb:tools   get_weather   {"name": "get_weather", "description": "…", "parameters": {<JSON Schema>}}

The hash is the union of what workers published and say again once in a while. What none says
for `TOOLS_TTL_S` is forgotten by the next one that says anything; while there is no worker at
all, nothing is. A worker that lacks a run's tool still says so itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis

TOOLS_TTL_S: Final = 30.0
# Two of these may be lost before a tool is forgotten.
KEEP_S: Final = TOOLS_TTL_S / 3

_PUBLISH: Final = Script("publish_tools")

# The tool by which a model asks a person.
ASK_USER: Final = "ask_user"


class ToolDescription(BaseModel):
    """A tool as a model, and a client of `GET /tools`, is told of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    parameters: dict[str, Any] = Field(description="the JSON Schema of its arguments")
    requires_approval: bool = Field(default=False, description="whether a call waits for a person's approval")


async def _publish(redis: Redis, described: Mapping[str, bytes], ttl_s: float) -> set[str]:
    """Refreshes a worker's tools and drops those that no worker has published for `ttl_s`.

    Args:
        described: descriptions by name; empty if the tool was published before.

    Returns:
        The names whose descriptions Redis does not have.
    """
    args = [part for name, description in described.items() for part in (name, description)]
    return {
        name.decode() for name in await _PUBLISH(redis, [keys.TOOLS, keys.TOOLS_SEEN], [round(ttl_s * 1000), *args])
    }


async def publish_tools(redis: Redis, tools: Iterable[ToolDescription], ttl_s: float = TOOLS_TTL_S) -> None:
    """Make a worker's tools known for `ttl_s`; a newer description takes the place of an older one."""
    await _publish(redis, {tool.name: orjson.dumps(tool.model_dump()) for tool in tools}, ttl_s)


async def keep_tools(redis: Redis, tools: Sequence[ToolDescription], ttl_s: float = TOOLS_TTL_S) -> None:
    """Say again that a worker has the tools that it published: by their names, or whole where Redis lost them."""
    missing = await _publish(redis, dict.fromkeys((tool.name for tool in tools), b""), ttl_s)
    if missing:
        await publish_tools(redis, [tool for tool in tools if tool.name in missing], ttl_s)


async def read_tools(redis: Redis) -> list[ToolDescription]:
    """Every published tool, by name; none where no worker has ever started."""
    described = await redis.hvals(keys.TOOLS)  # type: ignore[misc]
    return sorted((ToolDescription.model_validate_json(tool) for tool in described), key=lambda tool: tool.name)


async def find_unknown(redis: Redis, names: Sequence[str]) -> set[str]:
    """Those of `names` that no worker has published; none where no worker has ever started."""
    if not names:
        return set()
    published = {name.decode() for name in await redis.hkeys(keys.TOOLS)}  # type: ignore[misc]
    return set(names) - published if published else set()
