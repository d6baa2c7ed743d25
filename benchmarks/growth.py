"""Growth: the cost of an event with few and with many live runs, and early and late in one run."""

from typing import Any

from benchmarks import lab, relaying

FEW = 10
MANY = lab.sized(3000, 300)
PER_S = lab.sized(2000, 1000)
EVENTS = lab.sized(12_000, 1_000)
LONG = lab.sized(50_000, 8_000)
PART = lab.sized(5_000, 1_000)
BURST = 16
LATE_PER_S = 1000


async def measure() -> dict[str, Any]:
    """Measures gateway and server as CPU per event."""
    async with lab.Lab() as place:
        relay = await relaying.stagebus(place)
        few = await relay.measure(FEW, FEW, EVENTS, PER_S)
        early = await _one_run(place, relay)
        await relay.publisher.ask({"events": LONG, "per_s": 1_000_000, "burst": BURST, "streams": 1})
        await relay.browsers.ask({"wait": LONG // BURST * BURST})
        late = await _one_run(place, relay)
    async with lab.Lab() as place:
        relay = await relaying.stagebus(place)
        many = await relay.measure(MANY, MANY, EVENTS, PER_S)
    return {"few_runs": few, "many_runs": many, "early": early, "late": late, "long": LONG}


async def _one_run(place: lab.Lab, relay: relaying.Relay) -> dict[str, float]:
    """Measures one watched run; the others are silent."""
    await relay.browsers.ask("report")
    gateway, redis = relay.server.cpu_s(), place.redis_process.cpu_s()
    with place.undisturbed():
        await relay.publisher.ask({"events": PART, "per_s": LATE_PER_S, "streams": 1})
        await relay.browsers.ask({"wait": PART})
    return {
        "gateway_cpu_us": (relay.server.cpu_s() - gateway) / PART * 1e6,
        "redis_cpu_us": (place.redis_process.cpu_s() - redis) / PART * 1e6,
    }


if __name__ == "__main__":
    lab.run("growth", measure)
