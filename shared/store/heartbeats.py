"""Which workers and gateways there are, and what each is at: they say so themselves, again and again.

sb:workers    host:4711:9f3c21   {"concurrency": 10, "runs": [{"id": "01J…", "attempt": 5204}]}
sb:gateways   9f3c…              {"streams_open": 17}

It is for people who look. Nothing is decided by it: who holds a run its lease says.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis

logger = logging.getLogger(__name__)

SAY_S: Final = 2.0
# Some of these may be late or lost before a process is forgotten.
SILENT_MAX_S: Final = 5 * SAY_S

_SAY: Final = Script("heartbeat")

Json = dict[str, Any]


class Heartbeat:
    """Says of one process that it is there, until it goes."""

    def __init__(self, redis: Redis, kind: str, name: str, state: Callable[[], Mapping[str, Any]]) -> None:
        """`kind` is keys.WORKERS or keys.GATEWAYS; `state` tells what the process is at."""
        self._redis = redis
        self._key_list = [kind, keys.seen(kind)]
        self._name = name
        self._state = state

    async def say_forever(self) -> None:
        """Say it every `SAY_S`; when cancelled, take it back."""
        try:
            while True:
                try:
                    await self._say(orjson.dumps(self._state()))
                except Exception:
                    # Nobody would see this process any more, though it works.
                    logger.exception("%s could not say what it is at", self._name)
                await asyncio.sleep(SAY_S)
        finally:
            await self._say(b"")

    async def _say(self, state: bytes) -> None:
        try:
            await _SAY(self._redis, self._key_list, [self._name, state, round(SILENT_MAX_S * 1000)])
        except REDIS_AWAY as exc:
            logger.debug("Redis is away, nobody hears of %s: %s", self._name, exc)


class Present(NamedTuple):
    """A process that is there, what it said last, and how long ago."""

    name: str
    state: Json
    seen_ms_ago: int


async def read_present(redis: Redis, kind: str) -> list[Present]:
    """The processes that spoke lately, by name."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.seen(kind), 0, -1, withscores=True)
        pipe.hgetall(kind)
        (seconds, microseconds), seen, said = await pipe.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    ago_ms = {name: now_ms - int(seen_ms) for name, seen_ms in seen if name in said}
    return sorted(
        Present(name.decode(), orjson.loads(said[name]), max(0, ms))
        for name, ms in ago_ms.items()
        if ms <= SILENT_MAX_S * 1000
    )
