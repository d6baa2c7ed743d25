"""Deletes runs. A deleted run leaves a tombstone for an hour: its id, its tenant, a hash of its user and the time, and
nothing else.

sb:run:{01J…}   deleted_of   acme
                deleted_at   1735689600000
                deleted_user 522b276a356bdf39013dfabea2cd43e141ecc9e8
"""

from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunEnded, RunNotFound
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import run_store

# As long as a client may repeat a creation whose answer it did not get.
TOMBSTONE_TTL_S: Final = 3600
REASON: Final = "the run was deleted"

_DELETE: Final = Script("delete", uses=("announce", "is_owned"))


async def delete_run(redis: Redis, settings: Settings, run_id: str, owner: RunOwner) -> None:
    """Deletes a run of the owner in any state. Safe to repeat.

    An active run is cancelled first, whoever holds it: its streams end with `cancel`, and its tokens are counted. What
    a worker still writes is refused, before the deletion because its attempt is fenced, later because the run is gone.

    Raises:
        RunNotFound: the owner has no such run, or its tombstone has expired.
    """
    record = await run_scripts.read(redis, run_id, owner)
    idempotency, user = record.get(b"idempotency", b"").decode(), record.get(b"user", b"").decode()
    while not await delete_ended(redis, run_id, owner, idempotency, user):
        await _end(redis, settings, run_id)


async def _end(redis: Redis, settings: Settings, run_id: str) -> None:
    """Ends the run, also if a worker holds it, and accounts it."""
    try:
        await run_scripts.cancel(redis, run_id, REASON)
        event = await run_store.read_cancel_event(redis, run_id)
        claim = await run_scripts.claim(redis, run_id, "", has_webhooks=settings.has_webhooks)
        assert claim is not None, "a claim that includes held runs always succeeds or raises"
        await run_store.end_claimed(redis, settings, run_id, claim, event)
    except Fenced:
        return  # a worker claimed the run in between
    except RunEnded:
        await run_store.finalize(redis, settings, run_id)


async def delete_ended(
    connection: ScriptConnection, run_id: str, owner: RunOwner, idempotency: str = "", user: str = ""
) -> bool:
    """Deletes the run if it has ended and is accounted; returns whether it is deleted.

    Args:
        idempotency: the Redis key of the client's Idempotency-Key, or empty.
        user: the run's user, or empty.

    Raises:
        RunNotFound: the owner has no such run.
    """
    key_list = [keys.run(run_id), keys.ACTIVE, keys.runs(owner.tenant), keys.RUNNING, keys.THROTTLED, keys.QUEUE]
    key_list += [keys.feed(owner.tenant), keys.runs(owner.tenant, user), keys.lease(run_id)]
    key_list += keys.all_of_run(run_id, idempotency)[1:]
    tenant, *own_user = owner.fields
    reply = await _DELETE(connection, key_list, [run_id, tenant, idempotency, TOMBSTONE_TTL_S * 1000, *own_user])
    if reply == b"gone":
        raise RunNotFound(run_id)
    return bool(reply == b"deleted")
