"""Idempotency keys whose runs are in other partitions: those of runs in threads, and of tenants with limits.

The script that creates a run binds a key of the run's own partition in the same step. Another one is bound before it, and
freed again if the run is refused. If the process dies in between, the same request creates the run under the bound id.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import IdempotencyConflict, StagebusError
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import partition_of_run
from stagebus.shared.storage.redis_client import Redis

_BIND = Script("bind_key")
_EXPIRE = Script("expire_key")


def bound_run(reserved_for: str, digest: str) -> str:
    """Returns the run that the client's key belongs to.

    Raises:
        IdempotencyConflict: it has another request.
    """
    run_id, held_digest, *_ = reserved_for.split(" ")
    if held_digest != digest:
        raise IdempotencyConflict
    return run_id


@asynccontextmanager
async def bound_apart(
    redis: Redis, settings: Settings, idempotency: str, run_id: str, digest: str
) -> AsyncIterator[str]:
    """Context manager: binds a key of another partition to a run, and frees it if the run is refused.

    Args:
        idempotency: the Redis key; nothing is done if it is empty or of the run's own partition.

    Yields:
        The id of the run to create: this one, or that of an earlier request with the key.

    Raises:
        IdempotencyConflict: the key belongs to a run with another request.
    """
    if not idempotency or partition_of_run(redis, run_id).has(idempotency):
        yield run_id
        return
    token = uuid4().hex
    args = [run_id, digest, token, round(settings.lists_ttl_s * 1000)]
    run_id = bound_run((await _BIND(redis, [idempotency], args)).decode(), digest)
    try:
        yield run_id
    except StagebusError:
        await _EXPIRE(redis, [idempotency], [f"{run_id} {digest} {token}", 0])
        raise


async def expire_apart(redis: Redis, run_id: str, idempotency: str, ttl_s: float) -> None:
    """Sets the TTL of a run's key that is of another partition; does nothing for any other one."""
    if idempotency and not partition_of_run(redis, run_id).has(idempotency):
        await _EXPIRE(redis, [idempotency], [f"{run_id} ", max(1, round(ttl_s * 1000))])
