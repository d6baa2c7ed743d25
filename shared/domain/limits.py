"""The limits of a tenant. Those in Redis override those of the settings.

    HSET sb:limits acme:runs_running 5 acme:runs_queued 100     takes effect immediately in all processes
    HDEL sb:limits acme:runs_running                               back to the settings

0 means no limit. A value that is not a plain number, such as 5 or 0.5, is ignored, and the sweep logs it. The Lua scripts
read the hash themselves (lua/include/tenant_limit.lua), so that they check a limit and its count atomically.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

DAY_MS: Final = 24 * 3600 * 1000
# The pattern of lua/include/tenant_limit.lua.
_NUMBER: Final = re.compile(r"[0-9]*\.?[0-9]+")
_LIMIT_MAX: Final = 1e15


class TenantLimits(NamedTuple):
    """The limits of one tenant. The fields are called as in the hash."""

    requests_per_s: float = 0
    ticket_requests_per_s: float = 0  # with one ticket; they do not count as the tenant's
    streams_open: int = 0
    runs_queued: int = 0
    runs_running: int = 0
    tokens_per_day: int = 0


UNLIMITED: Final = TenantLimits()


def find_bad_limits(stored: Mapping[bytes, bytes]) -> Iterator[str]:
    """Yields a sentence for each entry of the hash that has no effect: its value or its name is invalid."""
    for field, value in stored.items():
        name = field.decode(errors="replace")
        limit = name.rpartition(":")[2]
        if limit not in TenantLimits._fields or ":" not in name:
            yield f"sb:limits has {name!r}, which is not a limit; write <tenant>:{'|'.join(TenantLimits._fields)}"
        elif not _NUMBER.fullmatch(value.decode(errors="replace")):
            yield f"sb:limits has {value!r} for {name!r}, which is not a number such as 5; the default applies"


def own_limit(stored: bytes | None, default: int) -> int:
    """Returns a tenant's own limit as the scripts read it: the default if it has none, or one that has no effect."""
    text = (stored or b"").decode(errors="replace")
    return int(min(float(text), _LIMIT_MAX)) if _NUMBER.fullmatch(text) else default


def tokens_ttl_ms(life_s: float) -> int:
    """Returns the TTL of a tenant's count of tokens, in ms: it outlives the day and the reservations of active runs.

    Args:
        life_s: the TTL of the tenant's lists.
    """
    return max(2 * DAY_MS, round(1000 * life_s))
