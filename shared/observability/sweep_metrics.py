"""The metrics of the sweep, in whichever process has done it.

stagebus_sweep_repairs_total{repair="requeued"} 2
"""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from stagebus.shared.observability import collectors

# The repairs of a sweep; see shared/store/sweep.py.
REPAIRS: Final = ("requeued", "timed_out", "cancelled", "accounted")


class SweepMetrics:
    """Counts the sweeps of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        namespace = collectors.NAMESPACE
        self._sweeps = Counter("sweeps", "sweeps of this process", namespace=namespace, registry=registry)
        self._seconds = Gauge(
            "sweep_seconds", "duration of this process's last sweep", namespace=namespace, registry=registry
        )
        self._looked_at = Counter(
            "sweep_runs_looked_at", "active runs that its sweeps looked at", namespace=namespace, registry=registry
        )
        self._repairs = Counter(
            "sweep_repairs", "runs that its sweeps repaired", ["repair"], namespace=namespace, registry=registry
        )
        for repair in REPAIRS:
            self._repairs.labels(repair)

    def swept(self, looked_at: int, repairs: Mapping[str, int], seconds: float) -> None:
        """Counts one sweep.

        Args:
            repairs: how many runs were repaired, by names in `REPAIRS`.
        """
        self._sweeps.inc()
        self._seconds.set(seconds)
        self._looked_at.inc(looked_at)
        for repair, count in repairs.items():
            self._repairs.labels(repair).inc(count)
