"""Repeating an operation until Redis answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import RedisError

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

    The first failure of an outage is logged, the later ones only at debug level. Cancelling the caller ends the wait
    immediately.

    Args:
        name: what waits for Redis, for the log: "run 01J…: its decisions".
        backoff_s: the pause after the first failure. It doubles up to `backoff_max_s`.
        is_retryable: which errors of Redis are repeated; by default those that pass, see `is_passing`.

    Raises:
        RedisError, OSError: an error that is not retryable.
    """
    failures = 0
    while True:
        try:
            result = await operation()
        except REDIS_AWAY as exc:
            if not is_retryable(exc):
                raise
            failures += 1
            logger.log(logging.WARNING if failures == 1 else logging.DEBUG, "%s: waiting for Redis (%s)", name, exc)
            await sleep(backoff_s)
            backoff_s = min(2 * backoff_s, backoff_max_s)
        else:
            if failures:
                logger.info("%s: Redis is back after %d failures", name, failures)
            return result
