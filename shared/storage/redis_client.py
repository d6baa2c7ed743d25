"""Connections to Redis, and whether the server is fit for Stagebus."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio import Redis as Redis  # noqa: PLC0414 - the one name by which other rooms know the client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageFull, StorageUnavailable, StorageUnfit

VERSION_MIN: Final = (6, 2)
POLICY: Final = "noeviction"

# What a caller may wait out: the server is away, or loading, or full.
REDIS_AWAY: Final = (RedisError, OSError)


class _Honest:
    """Says that a connection is gone in the one way that callers look for.

    Sending on a transport that was closed under it, uvloop raises RuntimeError and redis-py 5.3
    itself AttributeError; a caller that lives through an outage would die of either.
    """

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)  # type: ignore[misc]
        except (RuntimeError, AttributeError) as exc:
            raise RedisConnectionError("the connection was closed") from exc


class _HonestConnection(_Honest, Connection):
    pass


class _HonestSSLConnection(_Honest, SSLConnection):
    pass


class _HonestUnixConnection(_Honest, UnixDomainSocketConnection):
    pass


_HONEST: Final[dict[type, type]] = {
    Connection: _HonestConnection,
    SSLConnection: _HonestSSLConnection,
    UnixDomainSocketConnection: _HonestUnixConnection,
}


# What is for some kinds of connections alone. redis-py 5.3 looks at who signed a certificate and
# not at whose it is; the URL's own `ssl_…` parameters win.
_OF_SCHEME: Final[dict[str, dict[str, bool]]] = {
    "redis": {"socket_keepalive": True},
    "rediss": {"socket_keepalive": True, "ssl_check_hostname": True},
}


def connect(settings: Settings) -> Redis:
    """A client with its own pool; nothing is opened before the first command.

    A command whose pooled connection turns out dead is sent once more on a fresh one,
    which is safe as all our writes are safe to repeat.
    """
    url = settings.redis_url.get_secret_value()
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=settings.redis_connections_max,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        **_OF_SCHEME.get(urlsplit(url).scheme, {}),
    )
    pool.connection_class = _HONEST[pool.connection_class]
    redis = Redis(connection_pool=pool)
    # Entries stay as the parser gives them: redis-py's dict for each would double the cost of a replay.
    for command in ("XRANGE", "XREVRANGE"):
        redis.response_callbacks.pop(command, None)
    return redis


def open_connection(redis: Redis) -> Connection:
    """One connection outside the pool, for pub/sub and blocking pops; the caller connects and closes it."""
    connection: Connection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


async def close(redis: Redis) -> None:
    """Close the client and every connection of its pool."""
    await redis.aclose(close_connection_pool=True)


# Errors of a server that is alive and will take the same command later.
_PASSING: Final = (
    "OOM",
    "READONLY",
    "LOADING",
    "BUSY",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
)


def is_passing(exc: RedisError | OSError) -> bool:
    """Whether the same command may succeed later; the server's other errors would come again."""
    if not isinstance(exc, ResponseError) or isinstance(exc, OutOfMemoryError | ReadOnlyError):
        return True
    return str(exc).startswith(_PASSING)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate Redis's errors into ours.

    Raises:
        StorageFull: the server is at its maxmemory.
        StorageUnavailable: it does not answer, or not as it should.
    """
    try:
        yield
    except OutOfMemoryError as exc:
        raise StorageFull from exc
    except REDIS_AWAY as exc:
        raise StorageUnavailable from exc


async def check_server(redis: Redis) -> None:
    """Look whether the server may carry runs.

    Raises:
        StorageUnfit: unreachable, older than 6.2, or set to evict keys; the message says what to do.
    """
    try:
        server, memory = await redis.info("server"), await redis.info("memory")
    except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
        raise StorageUnfit(
            "Redis is unreachable: start it or set STAGEBUS_REDIS_URL; `stagebus up` without it brings its own"
        ) from exc
    except RedisError as exc:
        raise StorageUnfit(f"Redis does not let us in ({exc}); look at STAGEBUS_REDIS_URL") from exc
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < VERSION_MIN:
        raise StorageUnfit(f"Redis {version} is too old: 6.2 or newer, or Valkey, is needed")
    policy = memory.get("maxmemory_policy", POLICY)
    if policy != POLICY:
        raise StorageUnfit(
            f"Redis evicts keys (maxmemory-policy {policy}), so runs would vanish: CONFIG SET maxmemory-policy {POLICY}"
        )
