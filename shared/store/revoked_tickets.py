"""Revoked tickets: their ids are a field of the record of the run that they were for.

sb:run:{01J…}   revoked                       "9f3c0a5d77e11b2c… 4be1…"
                revoked_by:key:3f9c0a5d77e1   2, how many of them this subject has revoked
"""

from collections.abc import Collection
from typing import Final

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


async def revoke(redis: Redis, run_id: str, owner: RunOwner, ticket_id: str, *, by: str) -> None:
    """Revokes a ticket. Safe to repeat.

    Args:
        by: the subject that revokes it.

    Raises:
        RunNotFound: there is no such run, or it is another owner's.
        TooManyRevoked: the subject has revoked `REVOKED_MAX` tickets of the run already.
    """
    match await _REVOKE(redis, [keys.run(run_id)], [ticket_id, REVOKED_MAX, by, *owner.fields]):
        case b"gone":
            raise RunNotFound(run_id)
        case b"full":
            raise TooManyRevoked(REVOKED_MAX)


async def read(redis: Redis, run_ids: Collection[str]) -> dict[str, frozenset[str]]:
    """Returns the ids of each run's revoked tickets, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hget(keys.run(run_id), "revoked")
        fields = await pipe.execute()
    return {run_id: frozenset((field or b"").decode().split()) for run_id, field in zip(run_ids, fields, strict=True)}
