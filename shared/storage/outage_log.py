"""Logs an outage of Redis once for the whole process, however many runs, connections and requests notice it.

    WARNING  run 01M8…: its events: waiting for Redis (Connection refused); so does everything else until it is back
    INFO     run 01M8…: its events: Redis is back after 12.3 s

All other failures and recoveries are logged at the level DEBUG.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

# Failures that were under way when Redis came back arrive within this time; they are no new outage.
SETTLE_S: Final = 5.0
# After this long without a failure the next one is a new outage, even if nobody reported the end of the last one.
SILENCE_S: Final = 30.0


class OutageLog:
    """The state of the outage that this process sees. Usable from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._failed_at = self._ended_at = float("-inf")

    def report_failure(self, logger: logging.Logger, name: str, exc: Exception) -> None:
        """Logs that something waits for Redis: as a warning if nothing else of this process does yet.

        Args:
            name: what waits, such as "run 01J…: its decisions".
        """
        with self._lock:
            now = self._clock()
            is_known = self._began_at is not None and now - self._failed_at < SILENCE_S
            is_new = not is_known and now - self._ended_at >= SETTLE_S
            if is_new:
                self._began_at = now
            self._failed_at = now
        if is_new:
            logger.warning("%s: waiting for Redis (%s); so does everything else until it is back", name, exc)
        else:
            logger.debug("%s: waiting for Redis (%s)", name, exc)

    def report_recovery(self, logger: logging.Logger, name: str) -> None:
        """Logs that something which waited has reached Redis, unless the end of the outage is logged already."""
        with self._lock:
            began_at, self._began_at = self._began_at, None
            now = self._clock()
            self._ended_at = now if began_at is not None else self._ended_at
        if began_at is None:
            logger.debug("%s: Redis is back", name)
        else:
            logger.info("%s: Redis is back after %.1f s", name, now - began_at)


# Of this process, like its logging: each connection, run and thread of it sees the same outage.
OUTAGE: Final = OutageLog()
