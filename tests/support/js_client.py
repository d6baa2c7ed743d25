"""Runs the JavaScript client in Node and checks it as strictly as the strict client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.support.strict_client import StrictClient, Violation

DRIVER = Path(__file__).parents[2] / "clients" / "js" / "test" / "follow_runs.mjs"
LINE_MAX_BYTES = 16 * 1024 * 1024


class JsClients:
    """A Node process that follows any number of runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: dict[str, asyncio.Queue[dict[str, Any]]] = {}

    def follow(self, run_id: str, urls: list[str], cut_max: int) -> asyncio.Queue[dict[str, Any]]:
        """Follow a run; return the queue of its updates."""
        assert self._process.stdin is not None
        lines = self._lines[run_id] = asyncio.Queue()
        self._process.stdin.write(orjson.dumps({"run": run_id, "urls": urls, "cutMax": cut_max}) + b"\n")
        return lines

    async def read(self) -> None:
        """Distribute the updates until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            update = orjson.loads(line)
            self._lines[update["run"]].put_nowait(update)


@asynccontextmanager
async def js_clients() -> AsyncIterator[JsClients]:
    """Start a Node process; it shares our standard error."""
    process = await asyncio.create_subprocess_exec(
        "node", DRIVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_MAX_BYTES
    )
    clients = JsClients(process)
    reading = asyncio.create_task(clients.read())
    try:
        yield clients
    finally:
        process.kill()
        await process.wait()
        await asyncio.gather(reading, return_exceptions=True)


class JsClient(StrictClient):
    """Follows one run in Node; its updates are checked like events from the gateway."""

    def __init__(self, clients: JsClients, urls: list[str], run_id: str, cut_max: int = 0) -> None:
        """`cut_max`: cut each connection after at most so many bytes; 0 cuts none."""
        super().__init__(urls, run_id)
        self._clients = clients
        self._cut_max = cut_max

    async def follow(self, timeout_s: float = 60, _cut_after: object = None) -> "JsClient":
        """Follow to the terminal event."""
        updates = self._clients.follow(self.run_id, self.urls, self._cut_max)
        async with asyncio.timeout(timeout_s):
            while True:
                seen = await updates.get()
                if "event" in seen:
                    await self._take(seen["id"], seen["event"], seen["data"])
                elif "connection" in seen:
                    self.connections += seen["connection"] in ("live", "replaying")
                elif seen["error"] is not None or not self.is_ended:
                    raise Violation(f"{self.run_id}: the client ended with {seen['error']}")
                else:
                    return self
