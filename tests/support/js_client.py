"""The JavaScript client in a Node process, held to what the strict client is held to."""

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
    """One Node process that follows any number of runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: dict[str, asyncio.Queue[dict[str, Any]]] = {}

    def ask(self, run_id: str, urls: list[str], cut_max: int) -> asyncio.Queue[dict[str, Any]]:
        """Have it follow a run; what it says of it."""
        assert self._process.stdin is not None
        lines = self._lines[run_id] = asyncio.Queue()
        self._process.stdin.write(orjson.dumps({"run": run_id, "urls": urls, "cutMax": cut_max}) + b"\n")
        return lines

    async def read(self) -> None:
        """Pass on what it says, to its end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = orjson.loads(line)
            self._lines[said["run"]].put_nowait(said)


@asynccontextmanager
async def js_clients() -> AsyncIterator[JsClients]:
    """A Node process; what it writes on standard error goes to ours."""
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
    """Follows one run through Node. What comes out of there is judged as if it had come from the gateway."""

    def __init__(self, clients: JsClients, urls: list[str], run_id: str, cut_max: int = 0) -> None:
        """`cut_max`: each connection is cut after at most so many bytes."""
        super().__init__(urls, run_id)
        self._clients = clients
        self._cut_max = cut_max

    async def follow(self, timeout_s: float = 60, _cut_after: object = None) -> "JsClient":
        """Follow to the terminal event."""
        said = self._clients.ask(self.run_id, self.urls, self._cut_max)
        async with asyncio.timeout(timeout_s):
            while True:
                seen = await said.get()
                if "event" in seen:
                    await self._take(seen["id"], seen["event"], seen["data"])
                elif "connection" in seen:
                    self.connections += seen["connection"] in ("live", "replaying")
                elif seen["error"] is not None or not self.is_ended:
                    raise Violation(f"{self.run_id}: the client ended with {seen['error']}")
                else:
                    return self
