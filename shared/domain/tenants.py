"""Names of tenants and of their users, and the scopes of keys, tokens and tickets.

A tenant's name is part of Redis keys, log lines and metric labels, so it has no colon, brace or space. A user's name is
the application's own, so it may be any line of text.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256
from typing import Final, NamedTuple

# The tenant of all requests to an open gateway.
DEFAULT_TENANT: Final = "default"
TENANT_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

USER_MAX_CHARS: Final = 128
# No control characters and no line separators.
USER_PATTERN: Final = rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{{1,{USER_MAX_CHARS}}}"

_TENANT: Final = re.compile(TENANT_PATTERN)
_USER: Final = re.compile(USER_PATTERN)


class Scope(StrEnum):
    """A permission of a key, a token or a ticket within its tenant."""

    RUNS_WRITE = "runs:write"  # create runs
    RUNS_READ = "runs:read"  # read runs, lists of runs and events
    RUNS_CANCEL = "runs:cancel"  # cancel and delete runs
    APPROVALS = "approvals"  # decide on tool calls that wait for a person
    CALLS = "calls"  # give the results of calls that wait for them; runs:write includes it
    RUNS_OWN = "runs:own"  # all of the above, and for the runs of the caller's own user only
    ON_BEHALF = "on_behalf"  # name the user for whom a request is made
    ADMIN = "admin"  # read what belongs to no tenant: metrics and system statistics


# What RUNS_OWN includes.
OWN_SCOPES: Final = frozenset({Scope.RUNS_WRITE, Scope.RUNS_READ, Scope.RUNS_CANCEL, Scope.APPROVALS, Scope.CALLS})
# Scopes that another one includes.
INCLUDED_IN: Final = {Scope.CALLS: Scope.RUNS_WRITE}
# Everything that a caller may do in its tenant.
TENANT_WIDE: Final = frozenset(Scope) - {Scope.RUNS_OWN}


class RunOwner(NamedTuple):
    """The runs that a caller may see and change: those of a tenant, or only those of one of its users.

    Attributes:
        user: None for the runs of all users and those without a user.
    """

    tenant: str
    user: str | None = None

    def owns(self, tenant: bytes | None, user: bytes | None) -> bool:
        """Returns whether it owns a run with these fields in its record. Nobody's runs are nobody's own."""
        return tenant == self.tenant.encode() and (self.user is None or (bool(user) and user == self.user.encode()))

    @property
    def fields(self) -> list[str]:
        """Returns the arguments by which a script checks an owner: the tenant, and the user if it matters."""
        return [self.tenant] if self.user is None else [self.tenant, self.user]


def expand_scopes(names: Iterable[object]) -> frozenset[Scope]:
    """Returns the known scopes among these names, with what RUNS_OWN includes."""
    scopes = frozenset(Scope(name) for name in names if isinstance(name, str) and name in set(Scope))
    return scopes | OWN_SCOPES if Scope.RUNS_OWN in scopes else scopes


def compact_scopes(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Returns the scopes without what RUNS_OWN includes: a version that does not know it must not grant the rest."""
    return scopes - OWN_SCOPES if Scope.RUNS_OWN in scopes else scopes


def is_tenant(name: object) -> bool:
    """Returns whether `name` is a valid tenant name."""
    return isinstance(name, str) and _TENANT.fullmatch(name) is not None


def is_user(name: str) -> bool:
    """Returns whether `name` can be the name of a user."""
    return _USER.fullmatch(name) is not None


def user_of_subject(subject: str) -> str:
    """Returns the user that a token's subject stands for: the subject, or its hash if that cannot be a user's name.

    A shorter form would let two subjects be one user.
    """
    return subject if not subject or is_user(subject) else f"sha256:{sha256(subject.encode()).hexdigest()}"
