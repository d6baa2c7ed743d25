"""Chooses the partition of a new run, and with it the run's id.

in a thread             the thread's partition
a tenant with limits    the tenant's home, so that its runs and tokens are counted in one place
with a client's key     the key's partition, so that one script makes the run and binds the key
else                    any
"""

import random
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.limits import own_limit
from stagebus.shared.domain.threads import ThreadRequest
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis

# The limits that scripts of runs check. The others are counted at home, wherever the runs are.
_OF_RUNS: Final = ("runs_queued", "runs_running", "tokens_per_day")


async def new_run_id(
    redis: Redis, settings: Settings, tenant: str, thread: ThreadRequest | None, idempotency: str
) -> str:
    """Creates the id of a run in its partition.

    Args:
        idempotency: the Redis key of the client's Idempotency-Key, or empty.
    """
    if thread is not None:
        return ids.new_run_id_in(thread.identity.tag)
    partitioning = partitioning_of(redis)
    if not partitioning.tags:
        return ids.new_run_id()
    if await _has_limits(redis, settings, tenant):
        return ids.new_run_id_in(partitioning.of_name(tenant).tag)
    return ids.new_run_id_in(keys.tag_of(idempotency) if idempotency else random.choice(partitioning.tags))  # noqa: S311 - spreads the load


async def _has_limits(redis: Redis, settings: Settings, tenant: str) -> bool:
    """Returns whether the number of a tenant's runs or tokens is limited, by the copy of the limits in its home.

    While the home's node is away the settings decide, so that runs can be created at other nodes.
    """
    home, defaults = partitioning_of(redis).of_name(tenant), settings.tenant_limits
    try:
        stored = await redis.hmget(home.limits, [f"{tenant}:{name}" for name in _OF_RUNS])  # type: ignore[misc]
    except REDIS_AWAY:
        stored = [None] * len(_OF_RUNS)
    return any(own_limit(value, getattr(defaults, name)) > 0 for name, value in zip(_OF_RUNS, stored, strict=True))


def idempotency_key(redis: Redis, tenant: str, key: str | None, user: str) -> str:
    """Returns the Redis key of a client's Idempotency-Key, whose partition follows from its name; empty without one."""
    if key is None:
        return ""
    return partitioning_of(redis).of_name(f"{tenant}/{user}:{key}").idempotency(tenant, key, user)
