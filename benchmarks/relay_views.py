"""Relay in other protocols: what a live event costs the gateway in each view, beside the native stream."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import lab, relaying
from benchmarks.publisher import REQUEST
from benchmarks.relaying import Relay

RUNS = lab.sized(1000, 100)
PER_S = lab.sized(2000, 500)
EVENTS = lab.sized(20_000, 500)
WARM_UP = 50
ONE_RUN_PER_S = lab.sized(10, 40)
ONE_RUN_EVENTS = lab.sized(60, 20)

CHAT: Final = {**REQUEST, "stream": True}
AGUI: Final = {"threadId": "t", "state": {}, "messages": [], "tools": [], "context": [], "forwardedProps": {}}
# Each view's way to a run: a path, or the path and the body of a POST. `{}` is the run's id.
TARGETS: Final[Mapping[str, str | tuple[str, dict[str, Any]]]] = {
    "native": "/runs/{}/events",
    "thread": "/threads/{}/events",
    "Responses": "/v1/responses/resp_{}?stream=true",
    "chat completions": ("/v1/chat/completions", CHAT),
    "AI SDK": "/api/chat/{}/stream",
    "AG-UI": ("/agui", AGUI),
    "Durable Streams": "/durable/runs/{}?offset=-1&live=sse",
}


@dataclass
class ViewRelay(Relay):
    """The gateway, seen through a view."""

    body: dict[str, Any] | None = None

    def target(self, name: str) -> str | list[str]:
        """Returns what a browser asks for."""
        if self.body is None:
            return self.path.format(name)
        return [self.path, json.dumps({**self.body, "runId": name}), name]


async def measure() -> dict[str, Any]:
    """Measures each view under both loads, each time with a gateway of its own."""
    result: dict[str, Any] = {"many_runs": {}, "one_run": {}, "memory": {}}
    for name in TARGETS:
        for load, runs, events, per_s in (
            ("many_runs", RUNS, EVENTS, PER_S),
            ("one_run", 1, ONE_RUN_EVENTS, ONE_RUN_PER_S),
        ):
            async with lab.Lab() as place:
                relay = await _relay(place, name)
                if load == "many_runs":
                    await relay.open(WARM_UP, WARM_UP)  # the memory that the first streams need is not theirs
                measured = await relay.measure(runs, RUNS, events, per_s)
            result[load][name] = measured
            if load == "many_runs":
                result["memory"][name] = measured["memory_per_stream_bytes"]
    return result


async def _relay(place: lab.Lab, name: str) -> ViewRelay:
    relay = await relaying.stagebus(place)
    target = TARGETS[name]
    path, body = (target, None) if isinstance(target, str) else target
    return ViewRelay(place, relay.server, relay.port, relay.publisher, relay.browsers, path, body=body)


if __name__ == "__main__":
    lab.run("relay_views", measure)
