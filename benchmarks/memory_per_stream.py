"""Measures gateway memory per open stream, after opening and after traffic; it must stay flat."""

from typing import Any

from benchmarks import lab, relaying

STREAMS = lab.sized(1000, 200)
WARM_UP = 50
ROUNDS = 3
EVENTS_A_STREAM = lab.sized(5, 3)
PER_S = 2000


async def measure() -> dict[str, Any]:
    """Measures private memory beyond that with a few streams."""
    async with lab.Lab() as place:
        relay = await relaying.stagebus(place)
        await relay.measure(WARM_UP, WARM_UP, WARM_UP * 4, PER_S)
        start = relay.server.memory_bytes()
        names = await relay.publisher.ask({"make": STREAMS})
        paths = [relay.path.format(name) for name in names]
        await relay.browsers.ask({"open": paths, "port": relay.port, "events": 1})
        result: dict[str, Any] = {
            "streams": STREAMS,
            "bytes_a_stream_open": (relay.server.memory_bytes() - start) / STREAMS,
        }
        result["bytes_a_stream_after_traffic"] = []
        for _ in range(ROUNDS):
            events = (STREAMS + WARM_UP) * EVENTS_A_STREAM
            await relay.publisher.ask({"events": events, "per_s": PER_S})
            await relay.browsers.ask({"wait": events})
            await relay.browsers.ask("report")
            result["bytes_a_stream_after_traffic"].append((relay.server.memory_bytes() - start) / STREAMS)
        return result


if __name__ == "__main__":
    lab.run("memory_per_stream", measure)
