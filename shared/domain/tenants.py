"""Whose a run is: the tenant's name, and what somebody may do in it.

A tenant's name is part of Redis keys, of log lines and of metrics' labels, so it is a plain
word: no colon, no brace, no space.
"""

import re
from enum import StrEnum
from typing import Final

# Everybody's, where the gateway is open.
DEFAULT_TENANT: Final = "default"
TENANT_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_TENANT: Final = re.compile(TENANT_PATTERN)


class Scope(StrEnum):
    """One thing that a key, a token or a ticket lets its holder do, within its tenant."""

    RUNS_WRITE = "runs:write"  # make runs
    RUNS_READ = "runs:read"  # see runs, their lists and their events
    RUNS_CANCEL = "runs:cancel"  # stop runs
    APPROVALS = "approvals"  # decide on tool calls that wait for a person
    ADMIN = "admin"  # what belongs to no tenant: the metrics, the system's stats


def is_tenant(name: object) -> bool:
    """Whether a tenant may be called so."""
    return isinstance(name, str) and _TENANT.fullmatch(name) is not None
