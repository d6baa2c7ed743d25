"""Names of tenants, and the scopes of keys, tokens and tickets.

A tenant's name is part of Redis keys, log lines and metric labels, so it has no colon, brace or space.
"""

import re
from enum import StrEnum
from typing import Final

# The tenant of all requests to an open gateway.
DEFAULT_TENANT: Final = "default"
TENANT_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_TENANT: Final = re.compile(TENANT_PATTERN)


class Scope(StrEnum):
    """A permission of a key, a token or a ticket within its tenant."""

    RUNS_WRITE = "runs:write"  # create runs
    RUNS_READ = "runs:read"  # read runs, lists of runs and events
    RUNS_CANCEL = "runs:cancel"  # cancel and delete runs
    APPROVALS = "approvals"  # decide on tool calls that wait for a person
    ADMIN = "admin"  # read what belongs to no tenant: metrics and system statistics


def is_tenant(name: object) -> bool:
    """Returns whether `name` is a valid tenant name."""
    return isinstance(name, str) and _TENANT.fullmatch(name) is not None
