"""Runs the JavaScript client in Node and checks it as strictly as the strict client."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.support.strict_client import StrictClient, Violation
from tests.support.strict_thread_client import StrictThreadClient

DRIVER = Path(__file__).parents[2] / "clients" / "js" / "test" / "follow_runs.mjs"
LINE_MAX_BYTES = 16 * 1024 * 1024


class JsClients:
    """A Node process that follows any number of runs and threads."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._numbers = itertools.count()

    async def follow(self, **order: object) -> AsyncGenerator[dict[str, Any], None]:
        """Follow a run or a thread and yield its updates. `order`: see the program."""
        number = next(self._numbers)
        lines = self._lines[number] = asyncio.Queue()
        self._send({"of": number, **order})
        try:
            while True:
                yield await lines.get()
        finally:
            self._send({"stop": number})

    async def read(self) -> None:
        """Distribute the updates until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            update = orjson.loads(line)
            self._lines[update["of"]].put_nowait(update)

    def _send(self, order: dict[str, object]) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():  # the process ends before those who follow
            stdin.write(orjson.dumps(order) + b"\n")


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
        updates = self._clients.follow(run=self.run_id, urls=self.urls, cutMax=self._cut_max)
        async with asyncio.timeout(timeout_s), aclosing(updates):
            async for seen in updates:
                if "event" in seen:
                    await self._take(seen["id"], seen["event"], seen["data"])
                elif "connection" in seen:
                    self.connections += seen["connection"] in ("live", "replaying")
                elif seen["error"] is not None or not self.is_ended:
                    raise Violation(f"{self.run_id}: the client ended with {seen['error']}")
                else:
                    break
        return self


class JsThreadClient(StrictThreadClient):
    """Follows one thread in Node; its updates are checked like frames from the gateway."""

    def __init__(self, clients: JsClients, urls: list[str], thread_id: str, cut_max: int = 0) -> None:
        """`cut_max`: cut each connection after at most so many bytes; 0 cuts none."""
        super().__init__(urls, thread_id)
        self._clients = clients
        self._cut_max = cut_max

    async def follow(self, _cut_after: object = None, *, until_idle: bool = False) -> None:
        """Follows the thread: for ever, or until it is idle."""
        order = {"thread": self.thread_id, "urls": self.urls, "cutMax": self._cut_max, "isUntilIdle": until_idle}
        async with aclosing(self._clients.follow(**order)) as updates:
            async for seen in updates:
                if "event" in seen:
                    self.take(seen["id"], seen["event"], seen["data"])
                elif "connection" in seen:
                    self.connections += seen["connection"] in ("live", "replaying")
                elif seen["error"] is not None:
                    raise Violation(f"{self}: the client ended with {seen['error']}")
                else:
                    return
