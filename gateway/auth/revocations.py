"""Revoked tickets by run, and revoked sessions: looked up in Redis and cached.

As with API keys, the cache's TTL bounds how long a ticket or a session works that another gateway revoked.
"""

from collections.abc import Collection, Sequence
from typing import Final

from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.runtime.ttl_cache import TtlCache
from stagebus.shared.storage.redis_client import Redis, storage_errors
from stagebus.shared.store import revoked_sessions, revoked_tickets
from stagebus.shared.store.revoked_tickets import RevokedTickets

CACHE_TTL_S: Final = 5.0
CACHE_ENTRIES_MAX: Final = 10_000


class Revocations:
    """Looks up revoked tickets and sessions, and revokes them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tickets_by_run: TtlCache[str, RevokedTickets] = TtlCache(CACHE_TTL_S, CACHE_ENTRIES_MAX)
        self._is_revoked_by_session: TtlCache[str, bool] = TtlCache(CACHE_TTL_S, CACHE_ENTRIES_MAX)

    async def is_revoked(self, run_id: str, ticket_id: str, life_id: str = "") -> bool:
        """Returns whether the ticket of the run or the thread was revoked, by itself or since the thread was deleted.

        Args:
            life_id: of the ticket's thread. Another one that has its id is none of the holder's business.

        Raises:
            StorageUnavailable: Redis is away and the run's revocations are not cached.
        """
        revoked = self._tickets_by_run.get(run_id)
        if revoked is None:
            revoked = (await self._read([run_id]))[run_id]
            self._tickets_by_run[run_id] = revoked
        return ticket_id in revoked.ticket_ids or revoked.life_id not in ("", life_id)

    def forget(self, run_id: str) -> None:
        """Looks a run or a thread up again, since it was deleted."""
        self._tickets_by_run.discard(run_id)

    async def find(self, run_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """Returns the ids of each run's revoked tickets. Bypasses the cache.

        Raises:
            StorageUnavailable: Redis is away.
        """
        return {name: revoked.ticket_ids for name, revoked in (await self._read(run_ids)).items()}

    async def _read(self, run_ids: Collection[str]) -> dict[str, RevokedTickets]:
        with storage_errors():
            return await revoked_tickets.read(self._redis, run_ids)

    async def revoke(self, run_id: str, owner: RunOwner, ticket_id: str, *, by: str) -> None:
        """Revokes a ticket: here immediately, in other processes when their cached entry expires.

        Args:
            by: the subject that revokes it.

        Raises:
            RunNotFound: there is no such run, or it is another owner's.
            TooManyRevoked: the subject has revoked as many tickets of the run as it may.
            StorageUnavailable: Redis is away.
        """
        with storage_errors():
            await revoked_tickets.revoke(self._redis, run_id, owner, ticket_id, by=by)
        self.forget(run_id)

    async def is_session_revoked(self, session_id: str) -> bool:
        """Returns whether the session was ended.

        Raises:
            StorageUnavailable: Redis is away and the session is not cached.
        """
        is_revoked = self._is_revoked_by_session.get(session_id)
        if is_revoked is None:
            is_revoked = session_id in await self.find_sessions([session_id])
            self._is_revoked_by_session[session_id] = is_revoked
        return is_revoked

    async def find_sessions(self, session_ids: Sequence[str]) -> set[str]:
        """Returns those of the sessions that were ended. Bypasses the cache.

        Raises:
            StorageUnavailable: Redis is away.
        """
        with storage_errors():
            return await revoked_sessions.find(self._redis, session_ids)

    async def revoke_session(self, session_id: str, ttl_s: float) -> None:
        """Revokes a session that would expire in `ttl_s`: here immediately, elsewhere as tickets.

        Raises:
            StorageUnavailable: Redis is away.
        """
        with storage_errors():
            await revoked_sessions.revoke(self._redis, session_id, ttl_s)
        self._is_revoked_by_session[session_id] = True
