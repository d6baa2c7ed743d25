"""Measures the lag of the event loop: a repeated timer observes how late it is called.

    stagebus_event_loop_lag_seconds_bucket{le="0.05"} 17280

A blocked loop delays everything: events of streams, renewals of leases, answers to probes. The timer is independent of
the loop's work, so the histogram shows the delay of anything that arrives at a random time. It can miss a single short
stall between two observations.
"""

import asyncio
import time
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from stagebus.shared.observability import collectors

INTERVAL_S: Final = 0.25  # four wake-ups a second, some 60 us each


class LoopLag:
    """Observes the event loop in which it is started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(
            "event_loop_lag_seconds", "delay of a timer's call", namespace=collectors.NAMESPACE,
            registry=registry, buckets=collectors.LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Starts to observe."""
        # Not the loop's clock, which uvloop does not advance while the loop is busy.
        self._due = time.monotonic() + INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._observe)

    def stop(self) -> None:
        """Stops to observe."""
        if self._timer is not None:
            self._timer.cancel()

    def _observe(self) -> None:
        self._histogram.observe(max(0.0, time.monotonic() - self._due))
        self.start()
