"""redis-py's commands for a Redis Cluster, whose own client has no transactions and no pub/sub (redis-py 5.3, asyncio).

A command goes to the node of its key, over one pipelined connection to each node. A pipeline is one write to each node
that has a part in it; the keys of a transaction have one slot.
"""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ResponseError

from stagebus.shared.config.redis_url import Address, RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage.cluster_connection import ClusterConnection, slot_of
from stagebus.shared.storage.partition_keys import CLUSTER
from stagebus.shared.storage.pipelined import Command
from stagebus.shared.storage.redis_client import check_node, close, connect_to
from stagebus.shared.storage.slot_map import NODES_SEEN_MAX, SlotMap

# Sharded pub/sub is the newest command that is needed.
CLUSTER_VERSION_MIN: Final = (7, 0)


def connect_cluster(url: RedisUrl, settings: Settings) -> "ClusterRedis":
    """Returns a client of the cluster, which connects at the first command."""

    def connect_node(node: Address) -> Redis:
        return connect_to(RedisUrl(url.server_at(node)), settings)

    return ClusterRedis(url.nodes, connect_node, settings.redis_timeout_s)


class ClusterRedis(Redis):
    """A client of a cluster, with the methods of redis-py's client of one server.

    Args:
        seeds: nodes that are asked for all others.
        connect_node: returns a client of one node. Only its settings are used, and no connection of its pool stays open.
    """

    is_cluster = True
    partitioning = CLUSTER

    def __init__(self, seeds: Sequence[Address], connect_node: Callable[[Address], Redis], timeout_s: float) -> None:
        self._connect_node = connect_node
        self._clients: dict[Address, Redis] = {}
        first = self.client_of(seeds[0])
        super().__init__(connection_pool=first.connection_pool)
        self.response_callbacks = first.response_callbacks
        self.slots = SlotMap(seeds, self._read_slots)
        self.cluster_connection = ClusterConnection(self.slots, self.client_of, timeout_s)

    def client_of(self, node: Address) -> Redis:
        """Returns the client of one node."""
        client = self._clients.get(node)
        if client is None:
            if len(self._clients) >= NODES_SEEN_MAX:  # containers get a new address at each start
                del self._clients[next(iter(self._clients))]
            client = self._clients[node] = self._connect_node(node)
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends one command to the node of its key and returns its parsed reply.

        Raises:
            RedisError, OSError: the node is away or the command failed; the node may have executed it.
        """
        reply = await self.cluster_connection.send_packed(slot_of(args), pack(args))
        return await self.parse(args[0], reply, options)

    async def parse(self, name: str, reply: Any, options: dict[str, Any]) -> Any:
        """Returns what redis-py makes of the reply to a command of this name."""
        callback = self.response_callbacks.get(name)
        if callback is None:
            return reply
        parsed = callback(reply, **{key: value for key, value in options.items() if key not in _NO_CALLBACK_OPTIONS})
        return await parsed if inspect.isawaitable(parsed) else parsed

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":  # noqa: FBT001, FBT002 - redis-py's
        """Returns a pipeline; with `transaction` all of its keys must have one slot."""
        return ClusterPipeline(self, transaction=transaction, shard_hint=shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002, FBT001 - redis-py's
        """Closes the connections to all nodes."""
        await self.slots.aclose()
        await self.cluster_connection.aclose()
        for client in self._clients.values():
            await close(client)

    async def _read_slots(self, node: Address) -> Any:
        return await self.cluster_connection.to_node(node).execute_command("CLUSTER", "SLOTS")


# Options of redis-py's methods that are not meant for the callback.
_NO_CALLBACK_OPTIONS: Final = frozenset({"keys", "EMPTY_RESPONSE", "NEVER_DECODE"})


def pack(args: Sequence[Any]) -> bytes:
    """Packs a command of redis-py, whose name may have two words.

    Raises:
        DataError: an argument has a type that Redis does not know.
    """
    try:
        command: bytes = hiredis.pack_command((*args[0].split(" "), *args[1:]))
    except TypeError as exc:
        raise DataError(f"invalid arguments of {args[0]}: {exc}") from exc
    return command


class ClusterPipeline(Pipeline):
    """Commands that are sent together when `execute` is called."""

    def __init__(self, redis: ClusterRedis, *, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, shard_hint)
        self._redis = redis

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's
        """Sends the commands and returns their parsed replies.

        Args:
            raise_on_error: raise the first error among the replies, instead of returning errors in their places.

        Raises:
            RedisError, OSError: a node is away, or a command failed.
            ValueError: the keys of a transaction have more than one slot.
        """
        stack: list[Any] = self.command_stack
        self.command_stack = []
        if not stack:
            return []
        replies = await (
            self._transaction(stack) if self.is_transaction else self._send_all(stack, raise_on_error=raise_on_error)
        )
        return [
            reply if isinstance(reply, Exception) else await self._redis.parse(args[0], reply, options)
            for (args, options), reply in zip(stack, replies, strict=True)
        ]

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Refuses WATCH, which needs a connection of its own; scripts do what it is for."""
        raise NotImplementedError(f"{args[0]} on a cluster")

    async def _transaction(self, stack: list[Any]) -> list[Any]:
        slots = {slot for args, _ in stack if (slot := slot_of(args)) is not None}
        if len(slots) > 1:
            raise ValueError("the keys of a transaction have more than one slot")
        commands: list[Command] = [(*args[0].split(" "), *args[1:]) for args, _ in stack]
        return await self._redis.cluster_connection.transaction(commands, next(iter(slots), None))

    async def _send_all(self, stack: list[Any], *, raise_on_error: bool) -> list[Any]:
        slots = [slot_of(args) for args, _ in stack]
        # A command such as TIME belongs to the others: to the node of the first key.
        default = next((slot for slot in slots if slot is not None), None)
        replies = await asyncio.gather(
            *(
                self._redis.cluster_connection.send_packed(default if slot is None else slot, pack(args))
                for slot, (args, _) in zip(slots, stack, strict=True)
            ),
            return_exceptions=True,
        )
        for reply in replies:
            if isinstance(reply, BaseException) and (raise_on_error or not isinstance(reply, ResponseError)):
                raise reply
        return replies


async def check_cluster(redis: ClusterRedis) -> None:
    """Checks that the cluster is fit to store runs.

    Raises:
        StorageUnfit: slots have no node, or a primary is not fit, see `check_node`.
    """
    try:
        primaries = await redis.slots.read_primaries()
    except RedisConnectionError as exc:
        raise StorageUnfit(f"the Redis Cluster is not ready ({exc}); check STAGEBUS_REDIS_URL") from exc
    for primary in primaries:
        client = redis.client_of(primary)
        try:
            await check_node(client, CLUSTER_VERSION_MIN)
        except StorageUnfit as exc:
            raise StorageUnfit(f"node {primary}: {exc}") from exc
        finally:
            await close(client)  # its pool opens connections again if need be
