"""Relay: many clients on one run. Measures the CPU and the latency per event."""

from typing import Any

from benchmarks import lab, relaying

CLIENTS = lab.sized(1000, 200)
PER_S = lab.sized(10, 40)
EVENTS = lab.sized(60, 30)


async def measure() -> dict[str, Any]:
    """Measures ours and each rival, one after the other."""
    return await relaying.compare(1, CLIENTS, EVENTS, PER_S)


if __name__ == "__main__":
    lab.run("relay_one_run", measure)
