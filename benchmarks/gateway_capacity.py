"""Measures how many events per second one gateway process delivers at 80 % of a core."""

from typing import Any

from benchmarks import lab, relaying

STREAMS = lab.sized(1000, 100)
# By clients that watch each run: events a second, over all runs, that are published. Step by step, since it is the
# last step that tells: the busier a gateway is, the more events it reads and writes at once.
PACES = lab.sized({1: (1000, 2000, 4000), 100: (100, 200, 400, 600, 800)}, {1: (1000,), 100: (30,)})
SECONDS = lab.sized(6, 1)
SHARE = 0.8
# What takes so many times longer did not keep its pace: the machine is at its end, or the gateway.
LATE_MAX = 1.1


async def measure() -> dict[str, Any]:
    """Measures each distribution of clients in its own lab."""
    result: dict[str, Any] = {"streams": STREAMS, "share": SHARE, "by_clients_a_run": {}}
    for clients, paces in PACES.items():
        async with lab.Lab() as place:
            relay = await relaying.stagebus(place)
            await relay.open(STREAMS // clients, STREAMS)
            result["by_clients_a_run"][clients] = await _climb(relay, paces)
    return result


async def _climb(relay: relaying.Relay, paces: tuple[int, ...]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for per_s in paces:
        step = await relay.load(per_s * SECONDS, per_s)
        if steps and step["seconds"] > SECONDS * LATE_MAX:
            break
        steps.append(step)
        if step["core_share"] >= SHARE:
            break
    return {"steps": steps, "events_per_s": SHARE / steps[-1]["cpu_s_per_million"] * 1e6}


if __name__ == "__main__":
    lab.run("gateway_capacity", measure)
