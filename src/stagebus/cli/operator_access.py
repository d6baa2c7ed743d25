"""The operator's direct access to Redis, without a gateway."""

import getpass
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from stagebus.shared.errors import StorageUnavailable, StorageUnfit
from stagebus.shared.observability.logging import configure

if TYPE_CHECKING:
    from stagebus.shared.storage.redis_client import Redis

T = TypeVar("T")


def with_redis(query: "Callable[[Redis], Awaitable[T]]") -> T:
    """Return what `query` returns for a connection to Redis.

    Raises:
        StorageUnfit: Redis is unreachable; the message says what to do.
    """
    import asyncio

    from stagebus.cli.running_up import with_running_redis
    from stagebus.shared.config.settings import load_settings
    from stagebus.shared.config.startup_checks import warn_of_misspelt_variables
    from stagebus.shared.storage import connections, redis_client
    from stagebus.shared.storage.redis_client import storage_errors

    settings = with_running_redis(load_settings())
    configure(settings.log_level)
    warn_of_misspelt_variables()

    async def connect_and_query() -> T:
        redis = connections.connect(settings)
        try:
            with storage_errors():
                return await query(redis)
        except StorageUnavailable as exc:
            raise StorageUnfit(
                "Redis is unreachable: set STAGEBUS_REDIS_URL, or call this in the folder of a running `stagebus up` "
                "(STAGEBUS_DATA_DIR, if that has a --data-dir)"
            ) from exc
        finally:
            await redis_client.close(redis)

    return asyncio.run(connect_and_query())


def operator() -> str:
    """Return the subject of the audit lines."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):  # the user of a container may have no name
        return "operator"
