"""How late a process's event loop is: a timer is set again and again, and each says how late it was called.

    stagebus_event_loop_lag_seconds_bucket{le="0.05"} 17280

A loop that computes calls nobody meanwhile: no stream gets its events, no lease its renewal, no probe its answer. The
moments have nothing to do with what the loop does, so the histogram is what anything that comes at any moment waits;
a single stall may fall between two of them.
"""

import asyncio
import time
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from stagebus.shared.observability import collectors

LOOK_S: Final = 0.25  # four wake-ups a second, some 60 us each


class LoopLag:
    """Observes the loop in which it was started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(
            "event_loop_lag_seconds", "how much later than asked for a timer was called", namespace=collectors.NAMESPACE,
            registry=registry, buckets=collectors.LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Observe from now on."""
        # Not the loop's own clock: uvloop's stands still while the loop is busy.
        self._due = time.monotonic() + LOOK_S
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Observe no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._histogram.observe(max(0.0, time.monotonic() - self._due))
        self.start()
