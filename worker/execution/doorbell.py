"""The doorbell: one blocking pop wakes one waiting worker. A slow poll stands behind it."""

import asyncio
from typing import Final

from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Connection, Redis, open_connection

# On top of the server's own time-out, before the connection counts as dead.
REPLY_MARGIN_S: Final = 3.0


class Doorbell:
    """Waits on a connection of its own, since a blocking pop holds one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: Connection | None = None

    async def wait(self, timeout_s: float) -> str | None:
        """Sleep until the bell rings or the time is over; which run it rang for, if it rang.

        It may be taken already, or never have been one: older processes ring for nobody by name.

        Raises:
            RedisError, OSError: Redis is away.
        """
        connection = self._connection or open_connection(self._redis)
        self._connection = None  # who cancels this wait leaves a reply under way: that connection is used no more
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("BLPOP", keys.WAKEUP, f"{max(timeout_s, 0.01):.3f}")
            # redis-py's own time-out, which must not come first, answers None as a bell that is silent does
            # and leaves the reply under way: the next wait would take it for its own.
            async with asyncio.timeout(max(timeout_s, 0) + REPLY_MARGIN_S):
                reply = await connection.read_response(timeout=max(timeout_s, 0) + 2 * REPLY_MARGIN_S)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        return None if reply is None else reply[1].decode()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.disconnect()
