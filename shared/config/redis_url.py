"""The URL of Redis: of one server, of the sentinels that know the primary, or of some nodes of a cluster.

    redis://[user:password@]host[:6379][/database]
    rediss://…?ssl_ca_certs=ca.pem                            the same with TLS
    unix://[user:password@]/path.sock[?db=0]
    redis+sentinel://[user:password@]host[:26379],host…/service[/database]
    rediss+sentinel://…                                       the same with TLS, to the sentinels, too
    redis+cluster://[user:password@]host[:6379],host…         nodes that are asked for all others
    rediss+cluster://…                                        the same with TLS

User and password are Redis's own; those of the sentinels are `?sentinel_username=…&sentinel_password=…`. redis-py reads
the other parameters, such as `ssl_ca_certs`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

_SERVER_SCHEMES: Final = ("redis", "rediss", "unix")
_SENTINEL_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_SENTINEL_PORT: Final = 26379
_CLUSTER_SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_REDIS_PORT: Final = 6379
_PLACEHOLDER: Final = "node.invalid"
_SENTINEL_USER: Final = ("sentinel_username", "sentinel_password")
EXAMPLES: Final = (
    "redis://[user:password@]host:port/0, rediss://…, unix://…, redis+sentinel://host1,host2,host3/service/0 "
    "or redis+cluster://host1,host2"
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
        server: the URL of one server for redis-py. With sentinels and nodes, its host is only a placeholder.
        sentinels: empty for other kinds of URLs.
        service: the name under which the sentinels know the primary.
        nodes: nodes of a cluster; empty for other kinds of URLs.
    """

    server: str
    sentinels: tuple[Address, ...] = ()
    service: str = ""
    nodes: tuple[Address, ...] = ()
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
            if parts.scheme in _CLUSTER_SCHEMES:
                return _parse_nodes(parts)
            if parts.scheme in _SERVER_SCHEMES and parts.port != 0:
                return cls(url)
        except ValueError:  # its message might contain the password
            pass
        raise ValueError(f"must be a URL such as {EXAMPLES}")

    @property
    def scheme(self) -> str:
        """The scheme of the connections to the server: redis, rediss or unix."""
        return urlsplit(self.server).scheme

    def server_at(self, address: Address) -> str:
        """Returns the URL of the server at one address, with the user and the options of this URL."""
        return self.server.replace(_PLACEHOLDER, str(address), 1)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords in the URL, as they are written there and as they are sent."""
        password = urlsplit(self.server).password or ""
        return (password, unquote(password), self.sentinel_password or "")


def _parse_sentinels(parts: SplitResult) -> RedisUrl:
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not (database or "0").isdecimal():
        raise ValueError
    options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    sentinel_user = dict(option for option in options if option[0] in _SENTINEL_USER)
    query = urlencode([option for option in options if option[0] not in _SENTINEL_USER])
    return RedisUrl(
        _server_url(_SENTINEL_SCHEMES[parts.scheme], parts, database or "0", query),
        sentinels=_parse_hosts(parts, _SENTINEL_PORT),
        service=unquote(service),
        sentinel_username=sentinel_user.get("sentinel_username"),
        sentinel_password=sentinel_user.get("sentinel_password"),
    )


def _parse_nodes(parts: SplitResult) -> RedisUrl:
    if parts.path not in ("", "/", "/0"):  # a cluster has no other database
        raise ValueError
    return RedisUrl(
        _server_url(_CLUSTER_SCHEMES[parts.scheme], parts, "0", parts.query), nodes=_parse_hosts(parts, _REDIS_PORT)
    )


def _server_url(scheme: str, parts: SplitResult, database: str, query: str) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    return SplitResult(scheme, f"{user}{at}{_PLACEHOLDER}", f"/{database}", query, "").geturl()


def _parse_hosts(parts: SplitResult, default_port: int) -> tuple[Address, ...]:
    return tuple(_parse_host(host, default_port) for host in parts.netloc.rpartition("@")[2].split(","))


def _parse_host(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.port == 0:
        raise ValueError
    return Address(parts.hostname, default_port if parts.port is None else parts.port)
