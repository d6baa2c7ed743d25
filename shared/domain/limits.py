"""The limits of a tenant. Those in Redis override those of the settings.

    HSET sb:limits acme:runs_running 5 acme:runs_queued 100     takes effect immediately in all processes
    HDEL sb:limits acme:runs_running                               back to the settings

0 means no limit. The Lua scripts read the hash themselves, so that they check a limit and its count atomically.
"""

from typing import Final, NamedTuple


class TenantLimits(NamedTuple):
    """The limits of one tenant. The fields are called as in the hash."""

    requests_per_s: float = 0
    streams_open: int = 0
    runs_queued: int = 0
    runs_running: int = 0
    tokens_per_day: int = 0


UNLIMITED: Final = TenantLimits()
