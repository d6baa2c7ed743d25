"""Publishes events to the rivals' streams, as each one's publisher would."""

import asyncio
from typing import Final
from uuid import uuid4

from redis.asyncio import Redis

from benchmarks.latency import EVENT, stamped

TTL_S: Final = 3600
CONNECTIONS: Final = 16


class Xadder:
    """Publishes with XADD to one stream per job."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(redis_url)
        self._names: list[str] = []

    async def make(self, count: int) -> list[str]:
        """Creates streams with one event each."""
        names = [uuid4().hex for _ in range(count)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.xadd(name, {"event": EVENT, "data": stamped()})
                pipe.expire(name, TTL_S)
            await pipe.execute()
        self._names += names
        return names

    async def publish(self, number: int, burst: int) -> None:
        """Publishes a single event alone and a burst as a pipeline."""
        if burst == 1:
            await self._redis.xadd(self._names[number], {"event": EVENT, "data": stamped()})
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for _ in range(burst):
                pipe.xadd(self._names[number], {"event": EVENT, "data": stamped()})
            await pipe.execute()


class Poster:
    """Publishes with POST to nchan's publisher location over persistent connections."""

    def __init__(self, port: str) -> None:
        self._port = int(port)
        self._names: list[str] = []
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._opened = 0

    async def make(self, count: int) -> list[str]:
        """Creates channels with one message each, which subscribers get first."""
        names = [uuid4().hex for _ in range(count)]
        self._names += names
        await asyncio.gather(*(self.publish(len(self._names) - count + at, 1) for at in range(count)))
        return names

    async def publish(self, number: int, burst: int) -> None:
        """Sends one request per event, as nchan requires."""
        if self._free.empty() and self._opened < CONNECTIONS:
            self._opened += 1
            self._free.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))
        reader, writer = await self._free.get()
        for _ in range(burst):
            body = stamped()
            head = b"POST /pub/%b HTTP/1.1\r\nHost: localhost\r\nX-EventSource-Event: %b\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % (self._names[number].encode(), EVENT.encode(), len(body)) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0"
            )
            await reader.readexactly(int(length.partition(b":")[2]))
        self._free.put_nowait((reader, writer))
