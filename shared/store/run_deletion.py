"""Deletes runs. A deleted run leaves a tombstone for an hour: its id, its tenant, a hash of its user and the time, and
nothing else.

sb:run:{01J…}   deleted_of   acme
                deleted_at   1735689600000
                deleted_user 522b276a356bdf39013dfabea2cd43e141ecc9e8
"""

from contextlib import suppress
from typing import Final

import orjson

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import decode_run
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunEnded, RunNotFound
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import partition_of_run
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.thread_keys import RunThread
from stagebus.shared.store import idempotency_keys, run_store
from stagebus.shared.store.thread_store import thread_of
from stagebus.shared.thread_errors import RunMerged

# As long as a client may repeat a creation whose answer it did not get.
TOMBSTONE_TTL_S: Final = 3600
REASON: Final = "the run was deleted"

_DELETE: Final = Script("delete", uses=("announce", "is_owned", "virtual_time", "thread"))


async def delete_run(
    redis: Redis, settings: Settings, run_id: str, owner: RunOwner, *, with_merged: bool = False
) -> None:
    """Deletes a run of the owner in any state. Safe to repeat. Its turn in a thread keeps its place, without messages.

    An active run is cancelled first, also if a worker holds it: its streams end with `cancel`, and its tokens are counted. What
    a worker still writes is refused, before the deletion because its attempt is fenced, later because the run is gone.

    Args:
        with_merged: also delete a run whose messages joined another one, which keeps them.

    Raises:
        RunNotFound: the owner has no such run, or its tombstone has expired.
        RunMerged: the run's messages joined another run, which exists.
    """
    record = await run_scripts.read(redis, run_id, owner)
    run = decode_run(run_id, record)
    if run is not None and run.merged_into and not with_merged:
        await _check_merged(redis, run.merged_into)
    thread = None if run is None else thread_of(run, settings)
    idempotency, user = record.get(b"idempotency", b"").decode(), record.get(b"user", b"").decode()
    while not await delete_ended(redis, run_id, owner, idempotency, user, thread):
        await _end(redis, settings, run_id, thread)
    await idempotency_keys.expire_apart(redis, run_id, idempotency, TOMBSTONE_TTL_S)


async def _check_merged(redis: Redis, run_id: str) -> None:
    """Raises RunMerged if the run exists that took the messages."""
    with suppress(RunNotFound):
        await run_store.get_run(redis, run_id)
        raise RunMerged(run_id)


async def _end(redis: Redis, settings: Settings, run_id: str, thread: RunThread | None) -> None:
    """Ends the run, also if a worker holds it, and accounts it."""
    try:
        await run_scripts.cancel(redis, run_id, REASON, thread)
        event = await run_store.read_cancel_event(redis, run_id)
        claim = await run_scripts.claim(redis, run_id, "", has_webhooks=settings.has_webhooks)
        assert claim is not None, "a claim that includes held runs always succeeds or raises"
        await run_store.end_claimed(redis, settings, run_id, claim, event)
    except Fenced:
        return  # a worker claimed the run in between
    except RunEnded:
        await run_store.finalize(redis, settings, run_id)


async def delete_ended(
    connection: ScriptConnection,
    run_id: str,
    owner: RunOwner,
    idempotency: str = "",
    user: str = "",
    thread: RunThread | None = None,
) -> bool:
    """Deletes the run if it has ended and is accounted; returns whether it is deleted.

    Args:
        idempotency: the Redis key of the client's Idempotency-Key, or empty.
        user: the run's user, or empty.
        thread: the thread of the run, if it is in one.

    Raises:
        RunNotFound: the owner has no such run.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), part.active, part.runs(owner.tenant), part.running, part.throttled, part.queue]
    key_list += [part.feed(owner.tenant), part.runs(owner.tenant, user), part.lease(run_id)]
    key_list += [*part.all_of_run(run_id, idempotency)[1:], *(thread.keys(part) if thread else ())]
    tenant, *own_user = owner.fields
    args = [
        run_id,
        tenant,
        idempotency if idempotency and part.has(idempotency) else "",
        TOMBSTONE_TTL_S * 1000,
        orjson.dumps(thread.args()) if thread else "",
    ]
    reply = await _DELETE(connection, key_list, [*args, *own_user])
    if reply == b"gone":
        raise RunNotFound(run_id)
    return bool(reply == b"deleted")
