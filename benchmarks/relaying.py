"""What the relay measurements share: N streams open, events at an even pace, and what that cost."""

from dataclasses import dataclass
from typing import Any

from benchmarks.lab import Lab, Process


@dataclass
class Relay:
    """A server to measure, and how it is reached."""

    server: Process
    port: int
    publisher: Process
    browsers: Process
    path: str

    async def measure(self, streams: int, clients: int, events: int, per_s: float, burst: int = 1) -> dict[str, Any]:
        """Open `clients` streams spread over so many runs, publish, and count what it cost."""
        names = await self.publisher.ask({"make": streams})
        paths = [self.path.format(names[i % streams]) for i in range(clients)]
        before_open = self.server.memory_bytes()
        opened = await self.browsers.ask({"open": paths, "port": self.port, "events": 1})
        await self.browsers.ask("report")
        own = (await self.browsers.ask("report"))["cpu_s"]
        cpu = self.server.cpu_s()
        published = await self.publisher.ask({"events": events, "per_s": per_s, "burst": burst, "streams": streams})
        expected = published["events"] * clients // streams
        await self.browsers.ask({"wait": expected})
        cpu = self.server.cpu_s() - cpu
        came = await self.browsers.ask("report")
        return {
            "runs": streams,
            "clients": clients,
            "opened": opened,
            "per_s": per_s,
            "burst": burst,
            "published": published,
            "delivered": came["events"],
            "lost": expected - came["events"],
            "cpu_s_per_million": cpu / max(came["events"], 1) * 1e6,
            "latency_ms": came["latency_ms"],
            "writes_per_event": came["reads"] / max(came["events"], 1),
            "generator_cpu_s_per_million": (came["cpu_s"] - own) / max(came["events"], 1) * 1e6,
            "memory_per_stream_bytes": (self.server.memory_bytes() - before_open) / clients,
        }


async def stagebus(lab: Lab) -> Relay:
    """Our gateway."""
    await lab.start_redis()
    gateway, url = await lab.start_gateway()
    publisher = await lab.python("benchmarks.publisher", "stagebus", lab.redis_url)
    browsers = await lab.python("benchmarks.browsers")
    return Relay(gateway, int(url.rsplit(":", 1)[1]), publisher, browsers, "/runs/{}/events")
