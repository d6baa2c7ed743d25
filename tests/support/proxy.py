"""A TCP proxy that simulates faults of the network between two processes: it can be cut, hung or closed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self


class Proxy:
    """Forwards connections to `target_port` on loopback."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.passed = 0  # connections so far
        self.dropped = 0  # replies that were discarded
        self.drop_replies = False  # each reply of the server is discarded and its connection cut
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cuts all connections and refuses new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        self._flowing.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Aborts every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hang(self) -> None:
        """Stops forwarding; connections stay open."""
        self._flowing.clear()

    def flow(self) -> None:
        """Resumes forwarding."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.passed += 1
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(there_writer)
            await asyncio.gather(
                self._pump(reader, there_writer, self._pass), self._pump(there_reader, writer, self._reply)
            )
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pass_on: Callable[..., Awaitable[None]]
    ) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    await self._flowing.wait()
                    await pass_on(writer, data)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    async def _reply(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.drop_replies:
            self.dropped += 1
            raise ConnectionResetError
        await self._pass(writer, data)


class BufferingProxy(Proxy):
    """Holds event streams back in whole blocks, as nginx does with `proxy_buffering on`; passes all other replies."""

    def __init__(self, target_port: int, block_bytes: int) -> None:
        super().__init__(target_port)
        self.streams = 0  # event streams so far
        self._block_bytes = block_bytes
        self._held: dict[asyncio.StreamWriter, bytes] = {}

    async def _reply(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if b"content-type: text/event-stream" in data.lower():
            self.streams += 1
            self._held[writer] = b""
        if writer in self._held:
            data = self._held[writer] + data
            whole = len(data) - len(data) % self._block_bytes
            data, self._held[writer] = data[:whole], data[whole:]
        await super()._reply(writer, data)
