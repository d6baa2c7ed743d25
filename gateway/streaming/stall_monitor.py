"""Tells streams that have been silent for a few seconds what their run waits for, as `status` frames.

    event: status
    data: {"waiting_for":"worker"}

The frame has no id and is not part of the log: it moves no cursor, and a client that ignores it misses no event.
"""

import asyncio
import logging
from collections.abc import Mapping
from operator import attrgetter
from typing import Final

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.shared.domain.events import WaitingFor
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store.run_health import RunHealth, read_run_health

logger = logging.getLogger(__name__)

CHECK_S: Final = 0.5
# A Redis that does not answer for this long counts as away.
ANSWER_MAX_S: Final = 1.0
# A check's replies are parsed at once, in about 10 ms.
CHECKED_STREAMS_MAX: Final = 500
HELD_CHECK_S: Final = 1.0
# How often the stream of a silent run is checked. Runs at work are limited by the workers' concurrency; of the others
# there may be many.
_NEXT_CHECK_S: Final = {
    RunHealth.HELD: HELD_CHECK_S, RunHealth.UNHELD: HELD_CHECK_S, RunHealth.QUEUED: 5.0, RunHealth.AT_REST: 30.0,
}  # fmt: skip
_WAITING_FOR: Final[Mapping[RunHealth, WaitingFor]] = {RunHealth.UNHELD: "worker", RunHealth.QUEUED: "worker"}


class StallMonitor:
    """Checks the silent runs among those that are watched through this process."""

    def __init__(self, redis: Redis, lease_s: float, streams_by_run: Mapping[str, set[ClientStream]]) -> None:
        """`streams_by_run` is the hub's own."""
        self._redis = redis
        self._lease_s = lease_s
        self._streams_by_run = streams_by_run

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
        due = [stream for streams in self._streams_by_run.values() for stream in streams if stream.check_at <= now]
        if not due:
            return
        due = sorted(due, key=attrgetter("check_at"))[:CHECKED_STREAMS_MAX]
        run_ids = list({stream.run_id: None for stream in due})
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                healths = await read_run_health(self._redis, run_ids, self._lease_s)
        except (TimeoutError, *REDIS_AWAY):
            for stream in due:
                _report(stream, "storage", now, HELD_CHECK_S)
            return
        health_by_run = dict(zip(run_ids, healths, strict=True))
        for stream in due:
            health = health_by_run[stream.run_id]
            _report(stream, _WAITING_FOR.get(health), now, _NEXT_CHECK_S[health])


def _report(stream: ClientStream, waiting_for: WaitingFor | None, now: float, next_check_s: float) -> None:
    """Tells a stream that was due for a check, unless an event that came since has set the next one."""
    if stream.check_at <= now:
        stream.check_at = now + next_check_s
        stream.report(waiting_for)
