"""Finding the primary with Redis Sentinel, at each connect.

    connect ──▶ SENTINEL GET-MASTER-ADDR-BY-NAME <service> ──▶ connect to that server ──▶ ROLE: is it a primary?

A sentinel that was away during a failover names the old primary for a while, and that server may not know yet either that
it was replaced. ROLE finds the first of the two cases; the second one ends when the sentinels reach the old primary,
which then closes its connections and answers READONLY.
Spec: https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from stagebus.shared.config.redis_url import Address

# A sentinel that answers does so within milliseconds. The others are asked if one is down with its machine.
SENTINEL_TIMEOUT_S: Final = 1.0


class PrimaryNotFound(RedisConnectionError):
    """No sentinel named a primary."""


class NamedPrimary(NamedTuple):
    """The primary's address, and the sentinel that named it."""

    address: Address
    sentinel: Address


class PrimaryFinder:
    """Asks the sentinels for the address of the primary, first the one that answered last.

    Args:
        connect: creates a connection to a sentinel, which is opened and closed here.
    """

    def __init__(self, sentinels: Sequence[Address], service: str, connect: Callable[[Address], Connection]) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self._connect = connect

    async def find(self) -> NamedPrimary:
        """Returns the first answer of a sentinel.

        Raises:
            PrimaryNotFound: no sentinel answers, or none of them knows the service. The message says what each one did.
        """
        failures = []
        for sentinel in list(self._sentinels):
            try:
                primary = await self._ask(sentinel)
            except (RedisError, OSError) as exc:
                failures.append(f"{sentinel}: {exc}")
                continue
            if primary is not None:
                self._move(sentinel, 0)
                return NamedPrimary(primary, sentinel)
            failures.append(f"{sentinel} does not know the service {self._service}")
        raise PrimaryNotFound(f"no sentinel names a primary ({'; '.join(failures)})")

    def distrust(self, sentinel: Address) -> None:
        """Asks a sentinel after all others from now on, since the server that it named is not a primary."""
        self._move(sentinel, len(self._sentinels))

    async def _ask(self, sentinel: Address) -> Address | None:
        connection = self._connect(sentinel)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            reply = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        return None if reply is None else Address(reply[0].decode(), int(reply[1]))

    def _move(self, sentinel: Address, place: int) -> None:
        self._sentinels.remove(sentinel)
        self._sentinels.insert(place, sentinel)


class ConnectionToPrimary:
    """Mixin for a connection of redis-py: connects to the server that the sentinels name."""

    def __init__(self, *, finder: PrimaryFinder, **options: Any) -> None:
        super().__init__(**options)
        self._finder = finder
        self._sentinel: Address | None = None

    async def _connect(self) -> None:
        (self.host, self.port), self._sentinel = await self._finder.find()
        await super()._connect()  # type: ignore[misc]

    async def on_connect(self) -> None:
        """Authenticates and selects the database, as redis-py does, and checks that the server is a primary."""
        await super().on_connect()  # type: ignore[misc]
        await self.send_command("ROLE")  # type: ignore[attr-defined]
        role = (await self.read_response())[0]  # type: ignore[attr-defined]
        if role != b"master":
            assert self._sentinel is not None, "the connection is open"
            self._finder.distrust(self._sentinel)
            raise RedisConnectionError(
                f"{self.host}:{self.port} is not a primary, although the sentinel {self._sentinel} names it"
            )
