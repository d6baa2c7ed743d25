"""Exit codes, which scripts go by; docs/cli.md has their table."""

from enum import IntEnum

import httpx

from stagebus.client.client_errors import (
    BadCursor,
    BadKey,
    ClientError,
    Forbidden,
    Refused,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from stagebus.shared.errors import StagebusError


class Exit(IntEnum):
    """What became of the command."""

    SUCCEEDED = 0
    FAILED = 1  # the run, or the command
    USAGE = 2
    CANCELLED = 3
    REFUSED = 4
    UNAUTHORIZED = 5
    UNREACHABLE = 6
    PARKED = 7
    DETACHED = 130


EXIT_BY_EVENT = {"done": Exit.SUCCEEDED, "error": Exit.FAILED, "cancel": Exit.CANCELLED}
EXIT_BY_STATUS = {
    "succeeded": Exit.SUCCEEDED,
    "failed": Exit.FAILED,
    "cancelled": Exit.CANCELLED,
    "parked": Exit.PARKED,
}


class Misused(Exception):
    """The command was called wrongly; the message says how it goes."""


def exit_of(exc: BaseException) -> Exit | None:
    """The exit code of an error that is raised on purpose; None of any other."""
    match exc:
        case Misused() | BadCursor() | httpx.InvalidURL():
            return Exit.USAGE
        case BadKey() | Unauthenticated() | Forbidden():
            return Exit.UNAUTHORIZED
        case Unreachable() | Unavailable() | StreamBroken():
            return Exit.UNREACHABLE
        case Refused():
            return Exit.REFUSED
        case ClientError() | StagebusError():
            return Exit.FAILED
        case _:
            return None
