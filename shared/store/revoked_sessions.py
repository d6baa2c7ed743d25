"""Revoked sessions by id: a key exists from the logout until the session would have expired.

sb:session:9f3c0a5d77e11b2c   ""   expires with the session
"""

from collections.abc import Sequence
from typing import Final

from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis

TTL_MIN_MS: Final = 1


async def revoke(redis: Redis, session_id: str, ttl_s: float) -> None:
    """Revokes a session that would expire in `ttl_s`. Safe to repeat."""
    await redis.psetex(keys.revoked_session(session_id), max(TTL_MIN_MS, round(ttl_s * 1000)), b"")


async def find(redis: Redis, session_ids: Sequence[str]) -> set[str]:
    """Returns those of the sessions that are revoked, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for session_id in session_ids:
            pipe.exists(keys.revoked_session(session_id))
        found = await pipe.execute()
    return {session_id for session_id, is_revoked in zip(session_ids, found, strict=True) if is_revoked}
