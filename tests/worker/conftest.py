"""Fixtures: a runner, the demo model in its own process, and servers that answer with arbitrary bytes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.worker.execution.lease import LeaseKeeper
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.worker_metrics import WorkerMetrics


class ByteServer:
    """Answers every request with fixed bytes or with a function's result, then closes or waits for the client to."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._servers: list[asyncio.Server] = []

    async def serve(
        self, answer: bytes | Callable[[bytes, bytes], bytes], *later: bytes, pause_s: float = 0, holds_on: bool = False
    ) -> str:
        """Starts a server and returns its address. A function gets each request's head and body.

        Args:
            later: further parts of the answer, each after a pause.
        """

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                writer.write(answer if isinstance(answer, bytes) else answer(head, body))
                await writer.drain()
                for part in later:
                    await asyncio.sleep(pause_s)
                    writer.write(part)
                    await writer.drain()
                if holds_on:
                    await reader.read()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stops all servers."""
        for server in self._servers:
            server.close()
            await server.wait_closed()


@pytest.fixture(scope="session")
def demo_url() -> Iterator[str]:
    """Returns the demo's base URL; the provider is at `/v1`, next to the weather API."""
    repo = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "stagebus.worker.demo.demo_model", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=repo,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.terminate()


@pytest.fixture
async def byte_server() -> AsyncIterator[ByteServer]:
    """For answers that no correct server would send."""
    server = ByteServer()
    yield server
    await server.stop()


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
async def runner(redis: Redis, settings: Settings, model: ModelClient, metrics: WorkerMetrics) -> AsyncIterator[Runner]:
    """Executes runs with the fixture `model`, which each test file defines."""
    connection, channels, keeper = PipelinedConnection(redis, 5), Channels(redis, lambda: None), LeaseKeeper(settings)
    tools = ToolRegistry.from_settings(settings)
    await channels.start()
    keeper.start()
    yield Runner(
        redis, settings, connection=connection, worker="w", model=model, tools=tools, keeper=keeper, channels=channels,
        metrics=metrics,
    )  # fmt: skip
    keeper.stop()
    await channels.stop()
    await connection.aclose()
    await tools.aclose()
