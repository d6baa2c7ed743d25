"""Repeats operations during an outage, as every caller of Redis does."""

from collections.abc import Awaitable, Callable

from stagebus.shared.storage.redis_client import REDIS_AWAY, is_passing
from tests.support.waiting import until


async def retried(operation: Callable[[], Awaitable[object]]) -> object:
    """Repeats an operation until Redis executes it, and returns its reply."""

    async def attempt() -> list[object]:
        try:
            return [await operation()]
        except REDIS_AWAY as exc:
            if not is_passing(exc):
                raise
            return []

    return (await until(attempt))[0]
