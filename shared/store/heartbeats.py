"""Heartbeats of workers and gateways, each with the process's state.

sb:workers    host:4711:9f3c21   {"capabilities": ["threads"], "concurrency": 10, "runs": [{"id": "01J…", "attempt": 5204}]}
                                 and `"draining": true` once it takes no more runs, and in a run
                                 `"waits_for_provider": "openai"` while that provider's limits hold its request back
sb:gateways   9f3c…              {"streams_open": 17}

They are for people. One decision depends on them: a feature is off while a live worker lacks it (worker_capabilities).
The lease says who holds a run.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, time_reply_ms

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 2.0
# Some heartbeats may be late or lost before a process counts as gone.
HEARTBEAT_TTL_S: Final = 5 * HEARTBEAT_S

_HEARTBEAT: Final = Script("heartbeat")

Json = dict[str, Any]


class Heartbeat:
    """Sends the heartbeats of one process."""

    def __init__(self, redis: Redis, kind: str, name: str, state: Callable[[], Mapping[str, Any]]) -> None:
        """`kind` is keys.WORKERS or keys.GATEWAYS; `state` returns the process's state, as JSON values."""
        self._redis = redis
        self._key_list = [kind, partitioning_of(redis).seen(kind)]
        self._name = name
        self._state = state

    async def run(self) -> None:
        """Sends a heartbeat every `HEARTBEAT_S`. When cancelled, it removes the process."""
        try:
            while True:
                try:
                    await self.send(orjson.dumps(self._state()))
                except Exception:
                    # If this task ended, the process would disappear from the list though it works.
                    logger.exception("%s: the heartbeat failed", self._name)
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            await self.send(b"")

    async def send(self, state: bytes) -> None:
        """Sends one heartbeat; an empty state removes the process."""
        try:
            await _HEARTBEAT(self._redis, self._key_list, [self._name, state, round(HEARTBEAT_TTL_S * 1000)])
        except REDIS_AWAY as exc:
            logger.debug("%s: no heartbeat, Redis is away (%s)", self._name, exc)


class LiveProcess(NamedTuple):
    """A process that sent a heartbeat lately, its last state, and the age of that."""

    name: str
    state: Json
    seen_ms_ago: int


async def read_live_processes(redis: Redis, kind: str) -> list[LiveProcess]:
    """Returns the processes with a heartbeat younger than `HEARTBEAT_TTL_S`, by name."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(partitioning_of(redis).seen(kind), 0, -1, withscores=True)
        pipe.hgetall(kind)
        time, seen, states = await pipe.execute()
    now_ms = time_reply_ms(time)
    ago_ms = {name: now_ms - int(seen_ms) for name, seen_ms in seen if name in states}
    return sorted(
        LiveProcess(name.decode(), orjson.loads(states[name]), max(0, ms))
        for name, ms in ago_ms.items()
        if ms <= HEARTBEAT_TTL_S * 1000
    )
