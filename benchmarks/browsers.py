"""Simulates many browsers in one process: opens event streams and records when each event arrives.

Takes orders as lines of JSON on stdin, and answers each with a line:

    {"open": ["/runs/01J…/events", …], "port": 8000, "events": 1}   once each stream has had so many events
    {"open": [["/agui", "{…}", "key"], …], …}                       POST with that body and Idempotency-Key
    {"wait": 20000}            once so many events came since the last report, or none for a while
    "report"                   what came since the last report, and forget it

It is a bare asyncio protocol on uvloop that counts lines, since a load generator has to
be cheaper than what it measures: its own CPU stands in every report.
"""

import asyncio
import json
import resource
import sys
import time
from typing import Any, Final

import uvloop

from benchmarks.latency import latencies_ns, percentile

CONNECT_AT_ONCE: Final = 100
OPEN_S: Final = 120
QUIET_S: Final = 5
STEP_S: Final = 0.02


class Tally:
    """Counts what all streams received."""

    def __init__(self) -> None:
        self.events = 0
        self.received_bytes = 0
        self.reads = 0
        self.closed = 0
        self.asked_ns = 0
        self.latencies_ns: list[int] = []
        self.last_ns = 0


class Browser(asyncio.Protocol):
    """One event stream."""

    def __init__(self, tally: Tally, request: bytes) -> None:
        self.tally = tally
        self.request = request
        self.events = 0
        self.status = 0
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.tally.asked_ns = self.tally.asked_ns or time.monotonic_ns()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        tally = self.tally
        if not self.status:
            self.status = int(data[9:12])
        if self._rest:
            data = self._rest + data
        if data.endswith(b"\n"):
            self._rest = b""
        else:
            end = data.rfind(b"\n") + 1
            self._rest = data[end:]
            data = data[:end]
        # In Durable Streams a line of data is an array, and a second one that is an object says where to continue.
        count = data.count(b"\ndata: ") + data.count(b"\ndata:[")
        if not count and not data.startswith(b"data: "):
            return
        self.events += count + data.startswith(b"data: ")
        tally.events += count + data.startswith(b"data: ")
        tally.reads += 1
        tally.received_bytes += len(data)
        tally.last_ns = now
        tally.latencies_ns += latencies_ns(data, now)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self.tally.closed += 1


class Browsers:
    """Holds all streams of this process."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.browsers: list[Browser] = []

    async def open(
        self, targets: list[str | list[str]], port: int, events: int, headers: dict[str, str]
    ) -> dict[str, Any]:
        """Opens streams, a hundred at a time, until each has received that many events."""
        loop = asyncio.get_running_loop()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        for at in range(0, len(targets), CONNECT_AT_ONCE):
            some = [Browser(self.tally, _request(target, lines)) for target in targets[at : at + CONNECT_AT_ONCE]]
            self.browsers += some
            async with asyncio.timeout(OPEN_S):
                await asyncio.gather(*(loop.create_connection(lambda b=b: b, "127.0.0.1", port) for b in some))
                while not all(b.status and b.events >= events for b in some):  # noqa: ASYNC110 - cheap on purpose
                    await asyncio.sleep(STEP_S)
        wrong = [b.status for b in self.browsers if b.status != 200]
        return {"open": len(self.browsers), "wrong": wrong[:5]}

    async def wait(self, events: int) -> dict[str, Any]:
        """Waits for that many events since the last report."""
        quiet_since, seen = time.monotonic(), -1
        while self.tally.events < events and time.monotonic() - quiet_since < QUIET_S:
            if self.tally.events != seen:
                quiet_since, seen = time.monotonic(), self.tally.events
            await asyncio.sleep(STEP_S)
        return {"events": self.tally.events}

    def report(self) -> dict[str, Any]:
        """Returns what was received since the last report."""
        tally = self.tally
        self.tally = Tally()
        for browser in self.browsers:
            browser.tally = self.tally
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "events": tally.events,
            "stamped": len(tally.latencies_ns),
            "bytes": tally.received_bytes,
            "reads": tally.reads,
            "closed": tally.closed,
            "latency_ms": {f"p{p}": percentile(tally.latencies_ns, p) / 1e6 for p in (50, 90, 99, 100)},
            "asked_to_last_s": (tally.last_ns - tally.asked_ns) / 1e9 if tally.asked_ns else None,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }


def _request(target: str | list[str], lines: str) -> bytes:
    if isinstance(target, str):
        return f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{lines}\r\n".encode()
    path, body, key = target
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{lines}\r\n{body}".encode()


async def _main() -> None:
    browsers = Browsers()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order == "report":
            answer = browsers.report()
        elif "wait" in order:
            answer = await browsers.wait(order["wait"])
        else:
            answer = await browsers.open(order["open"], order["port"], order["events"], order.get("headers", {}))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
