"""What a tenant may have: the settings' limits, and its own in Redis, which win.

    HSET sb:limits acme:runs_running 5 acme:runs_queued 100     at once and for all processes
    HDEL sb:limits acme:runs_running                               back to the settings

0 is no limit. The scripts that decide read the hash themselves, so a limit and what it
counts are looked at in one moment.
"""

from typing import Final, NamedTuple


class TenantLimits(NamedTuple):
    """One tenant's limits; the fields' names are those in the hash."""

    requests_per_s: float = 0
    streams_open: int = 0
    runs_queued: int = 0
    runs_running: int = 0
    tokens_per_day: int = 0


UNLIMITED: Final = TenantLimits()
