"""The way of one command through a Redis Cluster: which node it is sent to, and where after each error.

    MOVED slot node                  the node has the slot: send it there
    ASK slot node                    the slot is moving to that node, and the key has moved: send it there once, after ASKING
    TRYAGAIN                         some of the keys have moved: wait, then send it to the slot's node
    CLUSTERDOWN, a lost connection   read the map; the error is the caller's, who repeats the command if that is safe

The node did not execute a command that it answers with one of the first three.
Spec: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding
"""

import asyncio
from typing import Final, NamedTuple, Self

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from stagebus.shared.config.redis_url import Address
from stagebus.shared.storage.slot_map import SlotMap

# More redirections mean that the nodes do not agree yet, as for a moment after a failover.
REDIRECTIONS_MAX: Final = 8
TRY_AGAIN_S: Final = 0.05
TRY_AGAINS_MAX: Final = 20


class Redirection(NamedTuple):
    """The node to which a command, or one of its keys, has moved."""

    slot: int
    node: Address
    is_asking: bool

    @classmethod
    def parse(cls, error: Exception, asked: Address) -> Self | None:
        """Returns the redirection that an error contains. A node without a host is reached as the one that was asked."""
        word, _, rest = str(error).partition(" ")
        if word not in ("MOVED", "ASK") or not isinstance(error, ResponseError):
            return None
        slot, _, address = rest.partition(" ")
        host, _, port = address.rpartition(":")
        host = asked.host if host in ("", "?") else host.strip("[]")
        return cls(int(slot), Address(host, int(port)), word == "ASK")


class Route:
    """The next place of one command: the node to which it is sent."""

    def __init__(self, slots: SlotMap, slot: int, node: Address) -> None:
        self._slots = slots
        self._slot = slot
        self._redirections = 0
        self._try_agains = 0
        self.node = node
        self.is_asking = False  # send ASKING before the command

    async def follow(self, error: Exception) -> None:
        """Sets where the command is sent again after an error.

        Raises:
            Exception: the error itself, if it is the caller's.
            RedisConnectionError: the nodes redirect the command in circles.
        """
        redirection = Redirection.parse(error, self.node)
        if redirection is not None:
            self._redirect(redirection, error)
        elif isinstance(error, ResponseError) and str(error).startswith("TRYAGAIN"):
            await self._wait(error)
        else:
            if not isinstance(error, ResponseError) or str(error).startswith("CLUSTERDOWN"):
                self._slots.refresh_soon()
            raise error

    def _redirect(self, redirection: Redirection, error: Exception) -> None:
        self._redirections += 1
        if self._redirections > REDIRECTIONS_MAX:
            self._slots.refresh_soon()
            raise RedisConnectionError(f"the cluster's nodes do not agree who has slot {self._slot}") from error
        if not redirection.is_asking:
            self._slots.on_moved(redirection.slot, redirection.node)
        self.node, self.is_asking = redirection.node, redirection.is_asking

    async def _wait(self, error: Exception) -> None:
        self._try_agains += 1
        if self._try_agains > TRY_AGAINS_MAX:
            self._slots.refresh_soon()
            raise error
        await asyncio.sleep(TRY_AGAIN_S)
        self.node, self.is_asking = await self._slots.find_node(self._slot), False
