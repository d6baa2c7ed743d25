"""The URL of Redis: of one server, or of the sentinels that know the primary.

    redis://[user:password@]host[:6379][/database]
    rediss://…?ssl_ca_certs=ca.pem                            the same with TLS
    unix://[user:password@]/path.sock[?db=0]
    redis+sentinel://[user:password@]host[:26379],host…/service[/database]
    rediss+sentinel://…                                       the same with TLS, to the sentinels, too

User and password are Redis's own; those of the sentinels are `?sentinel_username=…&sentinel_password=…`. redis-py reads
the other parameters, such as `ssl_ca_certs`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

_SERVER_SCHEMES: Final = ("redis", "rediss", "unix")
_SENTINEL_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_SENTINEL_PORT: Final = 26379
_SENTINEL_USER: Final = ("sentinel_username", "sentinel_password")
EXAMPLES: Final = (
    "redis://[user:password@]host:port/0, rediss://…, unix://… or redis+sentinel://host1,host2,host3/service/0"
)


class Address(NamedTuple):
    """The place where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that has been checked.

    Args:
        server: the URL of one server for redis-py. With sentinels, its host is only a placeholder.
        sentinels: empty if the URL names the server itself.
        service: the name under which the sentinels know the primary.
    """

    server: str
    sentinels: tuple[Address, ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @classmethod
    def parse(cls, url: str) -> "RedisUrl":
        """Parses a URL.

        Raises:
            ValueError: it has an unknown form. The message does not contain the URL, which may have a password.
        """
        try:
            parts = urlsplit(url)
            if parts.scheme in _SENTINEL_SCHEMES:
                return _parse_sentinels(parts)
            if parts.scheme in _SERVER_SCHEMES and parts.port != 0:
                return cls(url)
        except ValueError:  # its message might contain the password
            pass
        raise ValueError(f"must be a URL such as {EXAMPLES}")

    @property
    def scheme(self) -> str:
        """The scheme of the connections to the server: redis, rediss or unix."""
        return urlsplit(self.server).scheme

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords in the URL, as they are written there and as they are sent."""
        password = urlsplit(self.server).password or ""
        return (password, unquote(password), self.sentinel_password or "")


def _parse_sentinels(parts: SplitResult) -> RedisUrl:
    user, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdecimal():
        raise ValueError
    options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    sentinel_user = dict(option for option in options if option[0] in _SENTINEL_USER)
    query = urlencode([option for option in options if option[0] not in _SENTINEL_USER])
    server = SplitResult(_SENTINEL_SCHEMES[parts.scheme], f"{user}{at}primary.invalid", f"/{database or 0}", query, "")
    return RedisUrl(
        server.geturl(),
        tuple(_parse_host(host, _SENTINEL_PORT) for host in hosts.split(",")),
        unquote(service),
        sentinel_user.get("sentinel_username"),
        sentinel_user.get("sentinel_password"),
    )


def _parse_host(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.port == 0:
        raise ValueError
    return Address(parts.hostname, default_port if parts.port is None else parts.port)
