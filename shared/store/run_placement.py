"""Chooses the partition of a new run, and with it the run's id."""

import random

from stagebus.shared.domain import ids
from stagebus.shared.domain.threads import ThreadRequest
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import Redis


def new_run_id(redis: Redis, thread: ThreadRequest | None, idempotency: str) -> str:
    """Creates the id of a run in the partition of its thread, or else of its idempotency key, or else in any.

    Args:
        idempotency: the Redis key of the client's Idempotency-Key, or empty.
    """
    if thread is not None:
        return ids.new_run_id_in(thread.identity.tag)
    partitioning = partitioning_of(redis)
    if not partitioning.tags:
        return ids.new_run_id()
    if idempotency:
        return ids.new_run_id_in(keys.tag_of(idempotency))
    return ids.new_run_id_in(random.choice(partitioning.tags))  # noqa: S311 - spreads the load


def idempotency_key(redis: Redis, tenant: str, key: str | None, user: str) -> str:
    """Returns the Redis key of a client's Idempotency-Key, whose partition follows from its name; empty without one."""
    if key is None:
        return ""
    return partitioning_of(redis).of_name(f"{tenant}/{user}:{key}").idempotency(tenant, key, user)
