"""Revoked tickets: their ids are a field of the record of the run or the thread that they were for.

sb:run:{01J…}   revoked                       "9f3c0a5d77e11b2c… 4be1…"
                revoked_by:key:3f9c0a5d77e1   2, how many of them this subject has revoked
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from stagebus.shared.access_errors import TooManyRevoked
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunNotFound
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis

# Per run and subject, so that a key that reaches it does not keep others from revoking. To revoke more tickets than
# this, revoke the key that they were made with.
REVOKED_MAX: Final = 1000

_REVOKE: Final = Script("revoke_ticket", uses=("is_owned",))


class RevokedTickets(NamedTuple):
    """The ids of the revoked tickets of a run or a thread, and the id of the thread's life; empty for a run."""

    ticket_ids: frozenset[str]
    life_id: str = ""


async def revoke(redis: Redis, ticket_for: str, owner: RunOwner, ticket_id: str, *, by: str) -> None:
    """Revokes a ticket. Safe to repeat.

    Args:
        ticket_for: the id of a run, or the Redis key of a thread.
        by: the subject that revokes it.

    Raises:
        RunNotFound: there is no such run or thread, or it is another owner's.
        TooManyRevoked: the subject has revoked `REVOKED_MAX` tickets of it already.
    """
    match await _REVOKE(redis, [_record_key(ticket_for)], [ticket_id, REVOKED_MAX, by, *owner.fields]):
        case b"gone":
            raise RunNotFound(ticket_for)
        case b"full":
            raise TooManyRevoked(REVOKED_MAX)


async def read(redis: Redis, names: Collection[str]) -> dict[str, RevokedTickets]:
    """Returns the revoked tickets of each run or thread, in one round trip. Args: see `revoke`."""
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(_record_key(name), ["revoked", "gen"])
        replies = await pipe.execute()
    return {
        name: RevokedTickets(frozenset((revoked or b"").decode().split()), (life_id or b"").decode())
        for name, (revoked, life_id) in zip(names, replies, strict=True)
    }


def _record_key(ticket_for: str) -> str:
    return ticket_for if keys.is_thread(ticket_for) else keys.run(ticket_for)
