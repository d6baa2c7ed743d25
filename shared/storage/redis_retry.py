"""Repeating an operation until Redis answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import RedisError

from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.redis_client import REDIS_AWAY, is_passing

logger = logging.getLogger(__name__)

RETRY_BACKOFF_S: Final = 0.2
RETRY_BACKOFF_MAX_S: Final = 1.0

T = TypeVar("T")


async def retry_while_redis_is_down(
    operation: Callable[[], Awaitable[T]],
    name: str,
    *,
    backoff_s: float = RETRY_BACKOFF_S,
    backoff_max_s: float = RETRY_BACKOFF_MAX_S,
    is_retryable: Callable[[RedisError | OSError], bool] = is_passing,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Runs an operation that is safe to repeat until Redis executes it.

    An outage is logged once for the whole process, see `outage_log`. Cancelling the caller ends the wait immediately.

    Args:
        name: what waits for Redis, for the log: "run 01J…: its decisions".
        backoff_s: the pause after the first failure. It doubles up to `backoff_max_s`.
        is_retryable: which errors of Redis are repeated; by default those that pass, see `is_passing`.

    Raises:
        RedisError, OSError: an error that is not retryable.
    """
    has_failed = False
    while True:
        try:
            result = await operation()
        except REDIS_AWAY as exc:
            if not is_retryable(exc):
                raise
            has_failed = True
            OUTAGE.report_failure(logger, name, exc)
            await sleep(backoff_s)
            backoff_s = min(2 * backoff_s, backoff_max_s)
        else:
            if has_failed:
                OUTAGE.report_recovery(logger, name)
            return result
