"""Relay: one client on each of many live runs. Measures the CPU and the latency per event."""

from typing import Any

from benchmarks import lab, relaying

RUNS = lab.sized(1000, 200)
PER_S = lab.sized(2000, 1000)
SECONDS = lab.sized(10, 1)


async def measure() -> dict[str, Any]:
    """Measures ours and each rival, one after the other."""
    return await relaying.compare(RUNS, RUNS, PER_S * SECONDS, PER_S)


if __name__ == "__main__":
    lab.run("relay_many_runs", measure)
