"""Which node of a Redis Cluster has which slot, as far as this process knows.

    MOVED 3999 10.0.0.7:6379  ──▶ that slot now, all others by CLUSTER SLOTS in the background
    a node does not answer    ──▶ all slots by CLUSTER SLOTS from any other node

Every node that was ever named can be asked, so the map survives the loss of the nodes in the settings.
Spec: https://redis.io/docs/latest/commands/cluster-slots/
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from stagebus.shared.config.redis_url import Address
from stagebus.shared.domain.partitions import SLOTS
from stagebus.shared.runtime.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

# The pause after one reading of the map before the next: an outage fails many commands, and each asks for a new map.
REFRESH_PAUSE_S: Final = 0.2
# A node that answers does so within milliseconds. The next one is asked if it is down with its machine.
ASK_TIMEOUT_S: Final = 1.0
NODES_SEEN_MAX: Final = 256


class SlotMap:
    """The node of each slot. Reads the map again in the background whenever it turns out to be wrong."""

    def __init__(self, seeds: Sequence[Address], ask: Callable[[Address], Awaitable[Any]]) -> None:
        """`ask` returns the reply of one node to CLUSTER SLOTS."""
        self._ask = ask
        self._seen = dict.fromkeys(seeds)  # in the order in which they were last named
        self._nodes: list[Address | None] = [None] * SLOTS
        self._primaries: list[Address] | None = None  # None: to be computed
        self._listeners: list[Callable[[], None]] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        self._failure: Exception | None = None

    def node_of(self, slot: int) -> Address | None:
        """Returns the slot's node, if it is known."""
        return self._nodes[slot]

    async def find_node(self, slot: int) -> Address:
        """Returns the slot's node; reads the map if the node is unknown.

        Raises:
            RedisConnectionError: no node can be asked, or no node has the slot.
        """
        if self._nodes[slot] is None:
            await self.refresh()
        node = self._nodes[slot]
        if node is None:
            raise RedisConnectionError(f"no node of the cluster has slot {slot}")
        return node

    async def read_primaries(self) -> list[Address]:
        """Reads the map and returns all nodes that have slots.

        Raises:
            RedisConnectionError: no node can be asked, or some slots have no node.
        """
        await self.refresh()
        missing = self._nodes.count(None)
        if missing:
            raise RedisConnectionError(f"{missing} of the cluster's {SLOTS} slots have no node")
        return self.primaries()

    def primaries(self) -> list[Address]:
        """Returns the nodes that have slots, as far as they are known."""
        if self._primaries is None:
            self._primaries = sorted({node for node in self._nodes if node is not None})
        return self._primaries

    def any_node(self) -> Address | None:
        """Returns one of the nodes that have slots, at random; None if none is known."""
        primaries = self.primaries()
        return random.choice(primaries) if primaries else None  # noqa: S311 - only spreads the load

    def on_moved(self, slot: int, node: Address) -> None:
        """Notes which node has a slot now. Others have probably moved, too."""
        if self._nodes[slot] != node:
            self._nodes[slot], self._primaries = node, None
            self._note_seen([node])
            self.refresh_soon()

    def refresh_soon(self) -> None:
        """Reads the map in the background."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())

    async def refresh(self) -> None:
        """Reads the map, or waits for the reading in progress.

        Raises:
            RedisConnectionError: no node can be asked.
        """
        self.refresh_soon()
        refreshing = self._refreshing
        assert refreshing is not None, "refresh_soon has started it"
        await asyncio.wait([refreshing])
        if self._failure is not None:
            raise RedisConnectionError(f"no node of the cluster answers ({self._failure})") from self._failure

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each change of the map."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Ends the calls of `listener`."""
        self._listeners.remove(listener)

    async def aclose(self) -> None:
        """Ends the reading in progress."""
        if self._refreshing is not None:
            await cancel_and_wait(self._refreshing)

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, self._refreshed_at + REFRESH_PAUSE_S - loop.time()))
            self._failure = await self._read()
            if self._failure is not None:
                logger.info("the slots of the cluster cannot be read: %s", self._failure)
        finally:
            self._refreshed_at = loop.time()
            self._refreshing = None

    async def _read(self) -> Exception | None:
        """Takes the map of the first node that answers. Returns the last failure if no node does."""
        failure: Exception | None = None
        primaries = self.primaries()
        for node in dict.fromkeys([*random.sample(primaries, len(primaries)), *reversed(self._seen)]):
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    ranges = await self._ask(node)
                self._take(node, ranges)
            except (RedisError, OSError) as exc:  # a TimeoutError is an OSError
                failure = exc
            else:
                return None
        return failure

    def _take(self, asked: Address, ranges: Iterable[Any]) -> None:
        nodes: list[Address | None] = [None] * SLOTS
        for first, last, primary, *replicas in ranges:
            named = [_address(entry, asked) for entry in (primary, *replicas)]
            nodes[first : last + 1] = [named[0]] * (last - first + 1)
            self._note_seen(named)
        if nodes != self._nodes:
            self._nodes, self._primaries = nodes, None
            for listener in list(self._listeners):
                listener()

    def _note_seen(self, nodes: Iterable[Address]) -> None:
        for node in nodes:
            self._seen.pop(node, None)
            self._seen[node] = None
        while len(self._seen) > NODES_SEEN_MAX:
            del self._seen[next(iter(self._seen))]


def _address(entry: Sequence[Any], asked: Address) -> Address:
    """Returns a node's address; a node that does not know its own host is reached as the one that was asked."""
    host, port = entry[0], entry[1]
    return Address(asked.host if host in (None, b"", b"?") else host.decode(), int(port))
