"""Deletes threads: first none of its runs may begin, then they are deleted one by one, then the thread is.

The runs have records, logs and idempotency keys of their own, so this takes many steps. If the process dies in between,
the sweep goes on: until its end the thread is marked and among the busy ones.
"""

from contextlib import suppress
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.errors import RunNotFound
from stagebus.shared.storage import keys, thread_scripts
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import run_deletion
from stagebus.shared.store.thread_store import times_of
from stagebus.shared.thread_errors import ThreadNotFound

# Records that are looked for in one round trip.
_BATCH: Final = 500


async def delete_thread(redis: Redis, settings: Settings, identity: ThreadIdentity) -> None:
    """Deletes a thread with all its runs, also active ones. Its id is then free for a new thread.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    if not await drop_thread(redis, settings, keys.thread(identity), identity.tenant):
        raise ThreadNotFound(identity.thread_id)


async def drop_thread(redis: Redis, settings: Settings, thread_key: str, tenant: str) -> bool:
    """Deletes a thread by its Redis key; returns False if there is none."""
    times = times_of(settings)
    life_id, run_ids = await thread_scripts.drop(redis, thread_key, tenant, times)
    if not life_id:
        return False
    for run_id in await _existing(redis, run_ids):
        with suppress(RunNotFound):
            await run_deletion.delete_run(redis, settings, run_id, RunOwner(tenant), with_merged=True)
    await thread_scripts.forget(redis, thread_key, tenant, times, life_id)
    return True


async def _existing(redis: Redis, run_ids: list[str]) -> list[str]:
    """Returns the runs that have records; the others' are deleted or have expired."""
    existing = []
    for start in range(0, len(run_ids), _BATCH):
        batch = run_ids[start : start + _BATCH]
        async with redis.pipeline(transaction=False) as pipe:
            for run_id in batch:
                pipe.hexists(keys.run(run_id), "created_at")
            existing += [run_id for run_id, exists in zip(batch, await pipe.execute(), strict=True) if exists]
    return existing
