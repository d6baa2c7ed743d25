"""Passes the progress of a call from its tool to the tools stage.

A tool may report from any thread and as often as it likes. Only the newest message is kept, and the event loop is
notified at most once for it, so a flood of reports costs only the tool's own time.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

# The interval between two updates of a call: at least this, and at least this share of the call's time so far.
# An hour of progress then gives about 700 events instead of 36,000.
PROGRESS_INTERVAL_S: Final = 0.1
PROGRESS_INTERVAL_SHARE: Final = 0.01


class ProgressUpdate(NamedTuple):
    """The newest progress report of a tool."""

    message: str
    fraction: float | None


class CallProgress:
    """Keeps the newest update until it is taken.

    Args:
        on_update: called in the event loop when there is an update; not again before it is taken.
    """

    def __init__(self, on_update: "Callable[[CallProgress], None]") -> None:
        self._on_update = on_update
        self._loop = asyncio.get_running_loop()
        self._started_at = self._taken_at = self._loop.time()
        self._lock = threading.Lock()
        self._newest: ProgressUpdate | None = None
        self._is_notified = False
        self._is_closed = False

    def report(self, message: str, fraction: float | None) -> None:
        """Stores an update. May be called from any thread."""
        with self._lock:
            if self._is_closed:
                return
            self._newest = ProgressUpdate(message, fraction)
            if self._is_notified:
                return
            self._is_notified = True
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._schedule_update)

    def take(self) -> ProgressUpdate | None:
        """Returns the newest update, once. Called in the event loop."""
        with self._lock:
            update, self._newest = self._newest, None
            self._is_notified = False
            self._taken_at = self._loop.time()
        return update

    def close(self) -> ProgressUpdate | None:
        """Ignores further updates. Returns the last one if it has not been taken."""
        with self._lock:
            self._is_closed = True
        return self.take()

    def _schedule_update(self) -> None:
        now = self._loop.time()
        interval_s = max(PROGRESS_INTERVAL_S, PROGRESS_INTERVAL_SHARE * (now - self._started_at))
        is_first = self._taken_at == self._started_at
        due = now if is_first else self._taken_at + interval_s
        self._loop.call_at(due, self._on_update, self)
