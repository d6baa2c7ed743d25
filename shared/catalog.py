"""The tools that runs may name: published by the workers, which have them, read by the gateways.

sb:tools   get_weather   {"name": "get_weather", "description": "…", "parameters": {<JSON Schema>}}

The hash is the union of what workers published: a worker that lacks a run's tool still
says so itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from shared import keys


class ToolDescription(BaseModel):
    """A tool as a model, and a client of `GET /tools`, is told of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    parameters: dict[str, Any] = Field(description="the JSON Schema of its arguments")


async def publish_tools(redis: Redis, tools: Iterable[ToolDescription]) -> None:
    """Make a worker's tools known; a newer description takes the place of an older one."""
    described = {tool.name: orjson.dumps(tool.model_dump()) for tool in tools}
    if described:
        await redis.hset(keys.TOOLS, mapping=described)  # type: ignore[misc]


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
