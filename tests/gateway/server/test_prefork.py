"""Several gateways on one port, as real processes."""

import asyncio
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.gateway.server import prefork
from stagebus.gateway.server.prefork import bind_shared
from stagebus.shared.local.process_errors import ChildFailed
from stagebus.shared.log import sse
from tests.support.system import Process
from tests.support.waiting import until

WORKERS = 2
STREAMS = 12
SOON_S = 20.0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connections_of(pid: int) -> int:
    """Returns how many sockets a process has open."""
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(fd.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


async def read(http: httpx.AsyncClient, path: str, opened: asyncio.Semaphore) -> tuple[list[str], bool]:
    """Returns a stream's events, and whether its body was complete."""
    body = b""
    async with http.stream("GET", path) as stream:
        try:
            async for part in stream.aiter_bytes():
                body += part
                if b"event: " in part:
                    opened.release()
        except httpx.RemoteProtocolError:
            return [frame.event for frame in sse.decode(body)], False
    return [frame.event for frame in sse.decode(body)], True


@pytest.mark.faults
async def test_prefork_shares_the_port_restarts_children_and_drains(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    env = {"STAGEBUS_REDIS_URL": redis_url, "STAGEBUS_DRAIN_SPREAD_S": "0.2"}
    process = Process("gateways", ["-m", "stagebus.gateway", "--port", "0", "--workers", str(WORKERS)], env, tmp_path)
    process.start()
    try:
        url = await process.ready()
        first, second = children_of(process.pid)
        idle = [connections_of(pid) for pid in (first, second)]
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=SOON_S) as http:
            path = f"/runs/{(await http.post('/runs', json={'user_prompt': 'Hello'})).json()['id']}/events"
            opened = asyncio.Semaphore(0)
            streams = [asyncio.create_task(read(http, path, opened)) for _ in range(STREAMS)]
            for _ in streams:
                async with asyncio.timeout(SOON_S):
                    await opened.acquire()
            spread = [connections_of(pid) - before for pid, before in zip((first, second), idle, strict=True)]
            assert min(spread) > 0, "both children have some of the streams"

            os.kill(first, signal.SIGKILL)
            await until(lambda: any(stream.done() for stream in streams))
            # Until the parent sees its end, the system may still give it a connection.
            await until(lambda: first not in children_of(process.pid))
            assert (await http.get("/readyz")).status_code == 200, "the other child continues"
            await until(lambda: len(set(children_of(process.pid)) - {first}) == WORKERS)
            await until(lambda: "is back" in process.log())

            process.signal(signal.SIGTERM)
            ends = await asyncio.gather(*streams)
        assert await process.wait() == 0
    finally:
        if process.is_running:
            await process.kill()

    assert all(events == ["run_queued"] for events, _ in ends)
    assert 0 < sum(is_whole for _, is_whole in ends) < STREAMS, "the killed child's streams were cut, the other's ended"


def test_bind_shared_refuses_a_port_that_is_not_shared() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ChildFailed, match="cannot listen"):
            bind_shared("127.0.0.1", taken.getsockname()[1])


def test_bind_shared_port_0_is_one_port_for_all_addresses() -> None:
    sockets = bind_shared("localhost", 0)
    ports = {part.getsockname()[1] for part in sockets}
    for part in sockets:
        part.close()

    assert len(ports) == 1
    assert ports != {0}


def test_prefork_survives_a_closed_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no child would be restarted, and each would stop at its next line of output."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as closed_pipe:
        monkeypatch.setattr("sys.stderr", closed_pipe)
        prefork._print_line("gateway 1", "a line")
        monkeypatch.undo()
        with suppress(OSError):
            closed_pipe.close()
