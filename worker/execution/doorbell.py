"""The doorbell: one blocking pop wakes one waiting worker. A slow poll covers a bell that is lost."""

import asyncio
from collections.abc import Sequence
from typing import Final

from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Connection, Redis, open_connection

# Added to the server's own time-out before the connection counts as dead.
REPLY_MARGIN_S: Final = 3.0


class Doorbell:
    """Waits on a connection of its own, because a blocking pop occupies it."""

    def __init__(self, redis: Redis, wakeups: Sequence[str] = (keys.WAKEUP,)) -> None:
        """`wakeups` are the lists whose entries ring the bell."""
        self._redis = redis
        self._wakeups = wakeups
        self._connection: Connection | None = None

    async def wait(self, timeout_s: float) -> str | None:
        """Waits until the bell rings or the time is over.

        Returns:
            The run that the bell rang for; None if it did not ring. Another worker may have taken that run
            already, and the name may be empty: older processes ring without one.

        Raises:
            RedisError, OSError: Redis is down.
        """
        connection = self._connection or open_connection(self._redis)
        # If this wait is cancelled, its reply is still on its way, so the connection cannot be used again.
        self._connection = None
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("BLPOP", *self._wakeups, f"{max(timeout_s, 0.01):.3f}")
            # redis-py's own time-out must not fire first: it returns None, like a bell that did not ring, but leaves
            # the reply on its way, and the next wait would read it as its own.
            async with asyncio.timeout(max(timeout_s, 0) + REPLY_MARGIN_S):
                reply = await connection.read_response(timeout=max(timeout_s, 0) + 2 * REPLY_MARGIN_S)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        return None if reply is None else reply[1].decode()

    async def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            await self._connection.disconnect()
