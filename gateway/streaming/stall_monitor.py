"""Tells streams that have been silent for a few seconds what their run waits for, as `status` frames.

    event: status
    data: {"waiting_for":"worker"}

The frame has no id and is not part of the log: it moves no cursor, and a client that ignores it misses no event.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Final

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.shared.domain.events import WaitingFor
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store.run_health import RunHealth, read_run_health

logger = logging.getLogger(__name__)

SILENCE_S: Final = 3.0
CHECK_S: Final = 0.5
# A Redis that does not answer for this long counts as away.
ANSWER_MAX_S: Final = 1.0
# How often a silent run is checked. Runs at work are limited by the workers' concurrency; there may be many others.
HELD_CHECK_S: Final = 1.0
OTHER_CHECK_S: Final = 5.0

_WAITING_FOR: Final[Mapping[RunHealth, WaitingFor]] = {RunHealth.UNHELD: "worker", RunHealth.QUEUED: "worker"}
_CHECK_S: Final = {RunHealth.HELD: HELD_CHECK_S, RunHealth.UNHELD: HELD_CHECK_S}


class StallMonitor:
    """Checks the silent runs among those that are watched through this process."""

    def __init__(self, redis: Redis, lease_s: float, streams_by_run: Mapping[str, set[ClientStream]]) -> None:
        """`streams_by_run` is the hub's own."""
        self._redis = redis
        self._lease_s = lease_s
        self._streams_by_run = streams_by_run
        self._next_check_at: dict[str, float] = {}  # of silent runs

    async def run(self) -> None:
        """Checks until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self._check(asyncio.get_running_loop().time())
            except Exception:
                # If this task ended, no stream of this process would be told again.
                logger.exception("silent runs could not be checked")

    async def _check(self, now: float) -> None:
        silent = {run_id: found for run_id, streams in self._streams_by_run.items() if (found := _silent(streams, now))}
        self._next_check_at = {run_id: self._next_check_at.get(run_id, now) for run_id in silent}
        due = [run_id for run_id, at in self._next_check_at.items() if at <= now]
        if not due:
            return
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                healths = await read_run_health(self._redis, due, self._lease_s)
        except (TimeoutError, *REDIS_AWAY):
            self._next_check_at.clear()  # once Redis is back, all of them are told
            for streams in silent.values():
                _report(streams, "storage")
            return
        for run_id, health in zip(due, healths, strict=True):
            self._next_check_at[run_id] = now + _CHECK_S.get(health, OTHER_CHECK_S)
            _report(silent[run_id], _WAITING_FOR.get(health))


def _silent(streams: Iterable[ClientStream], now: float) -> list[ClientStream]:
    """Returns the streams that have been silent for long enough."""
    return [stream for stream in streams if now - stream.event_at >= SILENCE_S]


def _report(streams: Iterable[ClientStream], waiting_for: WaitingFor | None) -> None:
    for stream in streams:
        stream.report(waiting_for)
