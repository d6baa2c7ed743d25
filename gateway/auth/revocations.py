"""Which tickets were taken back, as this process knows it: looked up in Redis, and remembered for a moment.

As with keys, what is remembered bounds how long one that was taken back elsewhere is still good.
"""

import time
from collections.abc import Collection
from typing import Final

from stagebus.shared.storage.redis_client import Redis, storage_errors
from stagebus.shared.store import revoked_tickets

REMEMBER_S: Final = 5.0
REMEMBERED_MAX: Final = 10_000


class Revocations:
    """Looks revoked tickets up, by their runs."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._remembered: dict[str, tuple[float, frozenset[str]]] = {}

    async def has(self, run_id: str, ticket_id: str) -> bool:
        """Whether the run's ticket was taken back.

        Raises:
            StorageUnavailable: it cannot be told at the moment.
        """
        now = time.monotonic()
        until, revoked = self._remembered.get(run_id, (0.0, frozenset()))
        if now >= until:
            revoked = (await self.find([run_id]))[run_id]
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[run_id] = (now + REMEMBER_S, revoked)
        return ticket_id in revoked

    def remembers_good(self, run_id: str, ticket_id: str) -> bool:
        """Whether the ticket had not been taken back when that was last looked up."""
        return run_id in self._remembered and ticket_id not in self._remembered[run_id][1]

    async def find(self, run_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """Each run's revoked tickets, as Redis says now.

        Raises:
            StorageUnavailable: it cannot be told at the moment.
        """
        with storage_errors():
            return await revoked_tickets.read(self._redis, run_ids)

    async def revoke(self, run_id: str, tenant: str, ticket_id: str) -> None:
        """Take a ticket back: here at once, in other processes as soon as they look again.

        Raises:
            RunNotFound: no such run, or another tenant's.
            TooManyRevoked: so many of this run were already.
            StorageUnavailable: it cannot be stored at the moment.
        """
        with storage_errors():
            await revoked_tickets.revoke(self._redis, run_id, tenant, ticket_id)
        self._remembered.pop(run_id, None)
