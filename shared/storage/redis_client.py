"""Connections to Redis, its errors and its clock, and the check that the server is fit for Stagebus."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

# Only this folder imports redis-py. `as` marks the names of it that other rooms use.
from redis.asyncio import BlockingConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio import Connection as Connection  # noqa: PLC0414
from redis.asyncio import Redis as Redis  # noqa: PLC0414
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError as RedisError  # noqa: PLC0414
from redis.exceptions import TimeoutError as RedisTimeoutError

from stagebus.shared.config.redis_url import Address, RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import StorageFull, StorageUnavailable, StorageUnfit
from stagebus.shared.storage.partition_keys import PARTITIONED
from stagebus.shared.storage.sentinel import SENTINEL_TIMEOUT_S, ConnectionToPrimary, PrimaryFinder

VERSION_MIN: Final = (6, 2)
POLICY: Final = "noeviction"

# The errors of a server that is away, loading or full. See `is_passing` for those that waiting does not cure.
REDIS_AWAY: Final = (RedisError, OSError)


# Replies that concern the connection and not the command. After a failover the old primary stays up as a replica and
# would answer so for ever, while the address leads new connections to the new primary.
_CONNECTION_CODES: Final = ("READONLY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "LOADING")
# Redis 6.2 wraps the error of a script's command.
_SCRIPT_ERROR: Final = re.compile(rf"Error running script .*-({'|'.join(_CONNECTION_CODES)}) ", re.DOTALL)


class _WrongServer(RedisConnectionError):
    """This server refuses the command, but the one that the address leads to now may execute it."""


def as_connection_error(reply: object) -> RedisConnectionError | None:
    """Returns the error with which a connection has to be closed that got this reply; None if it may stay open."""
    if not isinstance(reply, ResponseError | BusyLoadingError):
        return None
    text = str(reply)
    is_refused = isinstance(reply, ReadOnlyError | BusyLoadingError) or text.startswith(_CONNECTION_CODES)
    return (
        _WrongServer(f"this server accepts no writes now: {text}") if is_refused or _SCRIPT_ERROR.match(text) else None
    )


class _Pool(BlockingConnectionPool):
    """Once a server has refused a command of one connection, every older connection is closed before its next use.

    So connections that only read leave an old primary, too, whose data may have become stale.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.epoch = 0
        self.opened: WeakSet[Connection] = WeakSet()  # outside of the pool

    def make_connection(self) -> Connection:
        """Creates a connection, for the pool or outside of it."""
        connection: Connection = super().make_connection()  # type: ignore[no-untyped-call]
        if isinstance(connection, _UniformErrors):
            connection.pool = self
        return connection

    async def ensure_connection(self, connection: Any) -> None:
        """Connects a pooled connection before its use, again if it is older than the last refusal."""
        if connection.epoch != self.epoch:
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    def leave_server(self, epoch: int) -> None:
        """Starts another epoch, unless one has started since the refused connection was opened."""
        if epoch == self.epoch:
            self.epoch += 1
            for connection in list(self.opened):
                if (writer := connection._writer) is not None:  # noqa: SLF001 - its own disconnect waits
                    writer.transport.abort()


class _UniformErrors:
    """Raises redis-py's ConnectionError for every connection that is lost, or that leads to the wrong server.

    For a send on a closed transport uvloop raises RuntimeError and redis-py 5.3 AttributeError. Callers that survive an
    outage catch neither. A cancellation always ends the command.
    """

    pool: _Pool | None = None
    epoch = 0

    async def connect(self, *args: Any, **options: Any) -> None:
        """Connects unless it is connected, and notes to which epoch of its pool the connection belongs."""
        if self.pool is not None and not self.is_connected:  # type: ignore[attr-defined]
            self.epoch = self.pool.epoch
        await super().connect(*args, **options)  # type: ignore[misc]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Reads a reply. A command that a server refused is sent once more, on a new connection."""
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except RedisError as exc:
            failure = leave_server(self, exc)
            if failure is None:
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise failure from exc

    async def send_packed_command(  # the signature is redis-py's
        self,
        command: bytes | str | Iterable[bytes],
        check_health: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Sends a command within the connection's `socket_timeout`.

        redis-py 5.3 uses asyncio.wait_for, which in Python 3.11 swallows a cancellation that arrives as it ends, so that
        the cancelled task would continue for ever. It also costs a task per command.

        Raises:
            RedisConnectionError: the connection is lost.
            RedisTimeoutError: the server does not read.
        """
        connection: Any = self
        if not connection.is_connected:
            await connection.connect()
        elif check_health:
            await connection.check_health()
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(connection.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except BaseException as exc:
            # Part of the command may have been sent.
            await connection.disconnect(nowait=True)
            if isinstance(exc, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from None
            if isinstance(exc, OSError):
                raise RedisConnectionError(f"Error while writing to socket: {exc}") from exc
            raise

    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        try:
            await super()._send_packed_command(command)  # type: ignore[misc]
        except (RuntimeError, AttributeError) as exc:
            raise RedisConnectionError("the connection was closed") from exc


class _Connection(_UniformErrors, Connection):
    pass


class _SSLConnection(_UniformErrors, SSLConnection):
    pass


class _UnixConnection(_UniformErrors, UnixDomainSocketConnection):
    pass


class _ConnectionToPrimary(ConnectionToPrimary, _Connection):
    pass


class _SSLConnectionToPrimary(ConnectionToPrimary, _SSLConnection):
    pass


_WITH_UNIFORM_ERRORS: Final[dict[type, type]] = {
    Connection: _Connection,
    SSLConnection: _SSLConnection,
    UnixDomainSocketConnection: _UnixConnection,
}
_TO_PRIMARY: Final[dict[type, type]] = {Connection: _ConnectionToPrimary, SSLConnection: _SSLConnectionToPrimary}


# Options of some kinds of connections. By default redis-py 5.3 verifies a certificate's signature but not its host name.
# The URL's own `ssl_…` parameters win.
_OPTIONS_BY_SCHEME: Final[dict[str, dict[str, bool]]] = {
    "redis": {"socket_keepalive": True},
    "rediss": {"socket_keepalive": True, "ssl_check_hostname": True},
}


def connect(settings: Settings) -> Redis:
    """Returns a client with its own pool, which connects at the first command.

    A pooled connection that turns out to be dead is replaced before the command is sent. A command that a server refused
    because it is no primary, for example, is sent once more on a new connection.
    """
    redis = connect_to(RedisUrl.parse(settings.redis_url.get_secret_value()), settings)
    if settings.partitioned:
        redis.partitioning = PARTITIONED  # type: ignore[attr-defined]  # see partitioning_of
    return redis


def connect_to(url: RedisUrl, settings: Settings) -> Redis:
    """Returns a client of the server at this URL, with the limits of the settings."""
    pool: BlockingConnectionPool = _Pool.from_url(
        url.server,
        max_connections=settings.redis_connections_max,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        lib_name=None,  # no CLIENT SETINFO, which Redis 7.0 does not know
        lib_version=None,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        retry_on_error=[_WrongServer],
        **_OPTIONS_BY_SCHEME.get(url.scheme, {}),
    )
    if url.sentinels:
        pool.connection_kwargs["finder"] = _primary_finder(url, pool)
        pool.connection_class = _TO_PRIMARY[pool.connection_class]
    else:
        pool.connection_class = _WITH_UNIFORM_ERRORS[pool.connection_class]
    redis = Redis(connection_pool=pool)
    # Entries stay as the parser returns them: redis-py's dict per entry would double the cost of a replay.
    for command in ("XRANGE", "XREVRANGE"):
        redis.response_callbacks.pop(command, None)
    return redis


def _primary_finder(url: RedisUrl, pool: BlockingConnectionPool) -> PrimaryFinder:
    """Returns a finder that connects to the sentinels as to the server, with TLS or without, but as their own user."""
    connection_class: Any = pool.connection_class
    options = {
        **{name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")},
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "username": url.sentinel_username,
        "password": url.sentinel_password,
        "lib_name": None,
        "lib_version": None,
    }

    def connection_to(sentinel: Address) -> Connection:
        connection: Connection = connection_class(host=sentinel.host, port=sentinel.port, **options)
        return connection

    return PrimaryFinder(url.sentinels, url.service, connection_to)


def leave_server(connection: object, reply: object) -> RedisConnectionError | None:
    """Checks a reply. If it shows that the server is the wrong one, all connections of the client leave it.

    Returns:
        The error with which the caller closes this connection; None if it may stay open.
    """
    failure = as_connection_error(reply)
    if failure is not None and isinstance(connection, _UniformErrors) and connection.pool is not None:
        connection.pool.leave_server(connection.epoch)
    return failure


def open_connection(redis: Redis) -> Connection:
    """Returns a connection outside the pool, for pub/sub and blocking pops. The caller connects and closes it."""
    pool = redis.connection_pool
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    if isinstance(pool, _Pool):
        pool.opened.add(connection)
    return connection


async def close(redis: Redis) -> None:
    """Closes the client and every connection of its pool."""
    await redis.aclose(close_connection_pool=True)


def time_reply_ms(reply: tuple[int, int]) -> int:
    """Converts the reply of TIME to Unix ms."""
    seconds, microseconds = reply
    return seconds * 1000 + microseconds // 1000


async def read_time_ms(redis: Redis) -> int:
    """Returns the server's clock in Unix ms."""
    return time_reply_ms(await redis.time())


# Errors of a server that is alive and will accept the same command later.
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
    """Returns whether the same command may succeed later. Other errors of the server would occur again."""
    if not isinstance(exc, ResponseError) or isinstance(exc, OutOfMemoryError | ReadOnlyError):
        return True
    return str(exc).startswith(_PASSING)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Context manager: translates the errors of Redis into ours.

    Raises:
        StorageFull: the server is at its maxmemory.
        StorageUnavailable: the server does not answer, or answers with an error.
    """
    try:
        yield
    except OutOfMemoryError as exc:
        raise StorageFull from exc
    except REDIS_AWAY as exc:
        raise StorageUnavailable from exc


async def check_server(redis: Redis) -> None:
    """Checks that the server is fit to store runs.

    Raises:
        StorageUnfit: it is unreachable, older than 6.2, configured to evict keys, or a node of a cluster. The message says
            what to do.
    """
    if (await _check(redis, VERSION_MIN)).get("cluster_enabled"):
        raise StorageUnfit(
            "this server is a node of a Redis Cluster: set STAGEBUS_REDIS_URL to redis+cluster://host1,host2 with some "
            "of its nodes, or to a server without cluster mode"
        )


async def check_node(redis: Redis, version_min: tuple[int, int]) -> None:
    """Checks a primary of a cluster in the same way.

    Raises:
        StorageUnfit: it is unreachable, older than `version_min`, configured to evict keys, or not a node of a cluster.
    """
    if not (await _check(redis, version_min)).get("cluster_enabled"):
        raise StorageUnfit("the server is not a node of a cluster")


async def _check(redis: Redis, version_min: tuple[int, int]) -> dict[str, Any]:
    """Returns the server's information."""
    try:
        info = {**await redis.info("server"), **await redis.info("memory"), **await redis.info("cluster")}
    except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
        raise StorageUnfit(
            f"Redis is unreachable ({exc}): start it or set STAGEBUS_REDIS_URL; `stagebus up` without it brings its own"
        ) from exc
    except RedisError as exc:
        raise StorageUnfit(f"Redis refuses access ({exc}); check STAGEBUS_REDIS_URL") from exc
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < version_min:
        needed = ".".join(map(str, version_min))
        raise StorageUnfit(f"Redis {version} is too old: Redis {needed} or newer, or Valkey, is required")
    policy = info.get("maxmemory_policy", POLICY)
    if policy != POLICY:
        raise StorageUnfit(
            f"Redis evicts keys (maxmemory-policy {policy}), so runs would vanish: CONFIG SET maxmemory-policy {POLICY}"
        )
    return info
