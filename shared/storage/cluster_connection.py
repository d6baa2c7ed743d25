"""Commands to a Redis Cluster over one pipelined connection to each node."""

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import hiredis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from stagebus.shared.config.redis_url import Address
from stagebus.shared.domain.partitions import key_slot
from stagebus.shared.storage.cluster_route import Route
from stagebus.shared.storage.partition_keys import CLUSTER
from stagebus.shared.storage.pipelined import Command, PipelinedConnection, pack_transaction
from stagebus.shared.storage.slot_map import NODES_SEEN_MAX, SlotMap

_ASKING: Final = hiredis.pack_command(("ASKING",))
_SCRIPT_COMMANDS: Final = frozenset({"EVAL", "EVALSHA"})
# Commands that any node can execute. The first argument of all others is their key.
_KEYLESS_COMMANDS: Final = frozenset(
    {
        "ACL",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "CONFIG",
        "DBSIZE",
        "ECHO",
        "INFO",
        "PING",
        "PUBLISH",
        "ROLE",
        "SCRIPT",
        "TIME",
    }
)

# A process uses the keys of its runs again and again, and computing a slot is a tenth of a command's cost.
_SLOT_CACHE_MAX: Final = 4096
_key_slot: Final = lru_cache(_SLOT_CACHE_MAX)(key_slot)


def slot_of(command: Sequence[Any]) -> int | None:
    """Returns the slot of a command's first key; None if any node can execute the command."""
    name = command[0]
    if name in _SCRIPT_COMMANDS:
        return _key_slot(command[3]) if int(command[2]) else None
    return None if name.partition(" ")[0] in _KEYLESS_COMMANDS else _key_slot(command[1])


class ClusterConnection:
    """As `PipelinedConnection`, but sends each command to the node of its key, and follows keys that move.

    Args:
        client_of: returns the client of one node, with whose settings a connection to it is opened.
    """

    is_cluster = True
    partitioning = CLUSTER

    def __init__(self, slots: SlotMap, client_of: Callable[[Address], Redis], timeout_s: float) -> None:
        self._slots = slots
        self._client_of = client_of
        self._timeout_s = timeout_s
        self._connections: dict[Address, PipelinedConnection] = {}

    def execute_command(self, *args: Any) -> Awaitable[Any]:
        """Sends one command and returns its reply.

        Raises:
            RedisError, OSError: the node is away or the command failed; the node may have executed it.
        """
        return self.send_packed(slot_of(args), hiredis.pack_command(args))

    async def send_packed(self, slot: int | None, commands: bytes, skipped: int = 0) -> Any:
        """Sends packed commands of one slot and returns the reply that follows `skipped` others.

        Args:
            slot: None for a command that any node can execute.
        """
        node = (self._slots.any_node() if slot is None else self._slots.node_of(slot)) or await self._find_node(slot)
        try:
            return await self.to_node(node).send_packed(commands, skipped)
        except (RedisError, OSError) as exc:
            route = Route(self._slots, slot or 0, node)
            await route.follow(exc)
        while True:
            try:
                if route.is_asking:
                    return await self.to_node(route.node).send_packed(_ASKING + commands, skipped + 1)
                return await self.to_node(route.node).send_packed(commands, skipped)
            except (RedisError, OSError) as exc:
                await route.follow(exc)

    async def transaction(self, commands: Sequence[Command], slot: int | None = None) -> list[Any]:
        """Executes commands of one slot in one MULTI/EXEC and returns their replies.

        Args:
            slot: by default that of the first command.

        Raises:
            RedisError, OSError: the node is away, or one of the commands failed.
        """
        slot = slot_of(commands[0]) if slot is None else slot
        replies: list[Any] = await self.send_packed(slot, *pack_transaction(commands))
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _find_node(self, slot: int | None) -> Address:
        if slot is not None:
            return await self._slots.find_node(slot)
        return (await self._slots.read_primaries())[0]

    def to_node(self, node: Address) -> PipelinedConnection:
        """Returns the connection to one node."""
        connection = self._connections.get(node)
        if connection is None:
            if len(self._connections) >= NODES_SEEN_MAX:  # containers get a new address at each start
                self._connections = {at: known for at, known in self._connections.items() if known.is_in_use}
            connection = self._connections[node] = PipelinedConnection(self._client_of(node), self._timeout_s)
        return connection

    async def aclose(self) -> None:
        """Closes all connections; commands in flight fail."""
        for connection in self._connections.values():
            await connection.aclose()
