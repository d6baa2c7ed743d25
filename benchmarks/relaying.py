"""Shared parts of the relay measurements: open N streams, publish at an even pace, measure the cost."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.lab import Lab, Process, free_port, until_listening
from benchmarks.rivals import nchan


class Missing(Exception):
    """A rival is not installed here."""


@dataclass
class Relay:
    """A server to measure, and its URLs."""

    lab: Lab
    server: Process
    port: int
    publisher: Process
    browsers: Process
    path: str  # of a run, for `target`
    runs: int = 0
    clients: int = 0

    async def measure(self, runs: int, clients: int, events: int, per_s: float) -> dict[str, Any]:
        """Opens streams, publishes and measures the cost, at a pace that leaves the cores idle most of the time."""
        opened = await self.open(runs, clients)
        with self.lab.undisturbed() as is_undisturbed:
            return {**opened, **await self.load(events, per_s), "is_undisturbed": is_undisturbed}

    async def open(self, runs: int, clients: int) -> dict[str, Any]:
        """Opens `clients` streams, spread over that many runs."""
        self.runs, self.clients = runs, clients
        names = await self.publisher.ask({"make": runs})
        targets = [self.target(names[i % runs]) for i in range(clients)]
        before = self.server.memory_bytes()
        opened = await self.browsers.ask({"open": targets, "port": self.port, "events": 1})
        return {"opened": opened, "memory_per_stream_bytes": (self.server.memory_bytes() - before) / clients}

    def target(self, name: str) -> str | list[str]:
        """Returns what a browser asks for: a path, or path, body and key of a POST."""
        return self.path.format(name)

    async def load(self, events: int, per_s: float) -> dict[str, Any]:
        """Publishes at that pace and measures the cost until everything was received."""
        await self.browsers.ask("report")
        own = (await self.browsers.ask("report"))["cpu_s"]
        cpu, started = self.server.cpu_s(), time.monotonic()
        published = await self.publisher.ask({"events": events, "per_s": per_s, "streams": self.runs})
        expected = published["events"] * self.clients // self.runs
        await self.browsers.ask({"wait": expected})
        cpu, seconds = self.server.cpu_s() - cpu, time.monotonic() - started
        came = await self.browsers.ask("report")
        return {
            "runs": self.runs,
            "clients": self.clients,
            "per_s": per_s,
            "published": published,
            "delivered": came["events"],
            "lost": expected - came["events"],
            "seconds": seconds,
            "core_share": cpu / seconds,
            "cpu_s_per_million": cpu / max(came["events"], 1) * 1e6,
            "latency_ms": came["latency_ms"],
            "writes_per_event": came["reads"] / max(came["events"], 1),
            "generator_cpu_s_per_million": (came["cpu_s"] - own) / max(came["events"], 1) * 1e6,
        }


async def stagebus(lab: Lab) -> Relay:
    """Starts our gateway."""
    await lab.start_redis()
    tools = await _tools(lab, "stagebus", lab.redis_url)
    gateway, url = await lab.start_gateway()
    return Relay(lab, gateway, port_of(url), *tools, "/runs/{}/events")


def port_of(url: str) -> int:
    """Returns the port of a URL."""
    return int(url.rsplit(":", 1)[1])


async def _tools(lab: Lab, way: str, target: str) -> tuple[Process, Process]:
    """Starts a publisher and browsers while the server starts."""
    return await lab.python("benchmarks.publisher", way, target), await lab.python("benchmarks.browsers")


async def naive(lab: Lab) -> Relay:
    """Starts Starlette and sse-starlette with one XREAD per client."""
    await lab.start_redis()
    port = free_port()
    tools = await _tools(lab, "xadd", lab.redis_url)
    server = await lab.python("benchmarks.rivals.naive", lab.redis_url, str(port))
    await until_listening(port)
    return Relay(lab, server, port, *tools, "/events/{}")


async def nchan_memory(lab: Lab) -> Relay:
    """Starts nginx with nchan, whose log lives in memory only."""
    return await _nchan(lab, None)


async def nchan_redis(lab: Lab) -> Relay:
    """Starts nginx with nchan and Redis."""
    await lab.start_redis()
    return await _nchan(lab, lab.redis_url.removesuffix("/0"))


async def _nchan(lab: Lab, redis_url: str | None) -> Relay:
    if missing := nchan.find_missing():
        raise Missing(missing)
    port = free_port()
    server = await lab.start("nginx", ["nginx", "-c", str(nchan.write_config(lab.folder, port, redis_url))])
    await until_listening(port)
    return Relay(lab, server, port, *await _tools(lab, "post", str(port)), "/sub/{}")


WAYS: Final[dict[str, Callable[[Lab], Awaitable[Relay]]]] = {
    "stagebus": stagebus,
    "naive": naive,
    "nchan_redis": nchan_redis,
    "nchan_memory": nchan_memory,
}


async def compare(streams: int, clients: int, events: int, per_s: float) -> dict[str, Any]:
    """Runs the same load on every server, one after the other, each in its own lab."""
    result: dict[str, Any] = {}
    for name, start in WAYS.items():
        async with Lab() as place:
            try:
                result[name] = await (await start(place)).measure(streams, clients, events, per_s)
            except Missing as exc:
                result[name] = {"skipped": str(exc)}
    return result
