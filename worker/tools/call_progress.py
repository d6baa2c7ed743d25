"""One call's progress on its way from the tool to the stage.

The tool may tell of it from any thread and as often as it likes: kept is the newest
message alone, and one note that there is news. So a flood costs its own thread's time
and nothing else.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

# News of one call follow each other no sooner than this, and than this share of the call's
# time so far: an hour of progress is some 700 events, not 36,000.
PROGRESS_INTERVAL_S: Final = 0.1
PROGRESS_INTERVAL_SHARE: Final = 0.01


class ProgressUpdate(NamedTuple):
    """What a tool last said of its progress."""

    message: str
    fraction: float | None


class CallProgress:
    """Keeps the newest message until it is taken.

    Args:
        announce: called in the event loop when there is news to take; not again before they are taken.
    """

    def __init__(self, announce: "Callable[[CallProgress], None]") -> None:
        self._announce = announce
        self._loop = asyncio.get_running_loop()
        self._began_at = self._taken_at = self._loop.time()
        self._lock = threading.Lock()
        self._newest: ProgressUpdate | None = None
        self._is_announced = False
        self._is_closed = False

    def report(self, message: str, fraction: float | None) -> None:
        """Take a message, from any thread."""
        with self._lock:
            if self._is_closed:
                return
            self._newest = ProgressUpdate(message, fraction)
            if self._is_announced:
                return
            self._is_announced = True
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._announce_when_due)

    def take(self) -> ProgressUpdate | None:
        """The newest message, once; in the event loop."""
        with self._lock:
            said, self._newest = self._newest, None
            self._is_announced = False
            self._taken_at = self._loop.time()
        return said

    def close(self) -> ProgressUpdate | None:
        """Take no more; returns what nobody has taken yet."""
        with self._lock:
            self._is_closed = True
        return self.take()

    def _announce_when_due(self) -> None:
        now = self._loop.time()
        interval_s = max(PROGRESS_INTERVAL_S, PROGRESS_INTERVAL_SHARE * (now - self._began_at))
        is_first = self._taken_at == self._began_at
        due = now if is_first else self._taken_at + interval_s
        self._loop.call_at(due, self._announce, self)
