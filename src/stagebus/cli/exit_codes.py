"""Exit codes of the command, for scripts; docs/cli.md has the table."""

from enum import IntEnum

import httpx

from stagebus.client.client_errors import (
    BadCursor,
    BadKey,
    BadUserName,
    ClientError,
    Forbidden,
    InvalidRequest,
    Refused,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from stagebus.shared.errors import StagebusError


class ExitCode(IntEnum):
    """The outcome of a command."""

    SUCCEEDED = 0
    FAILED = 1  # the run, or the command
    USAGE = 2
    CANCELLED = 3
    REFUSED = 4
    UNAUTHORIZED = 5
    UNREACHABLE = 6
    PARKED = 7
    INCOMPLETE = 8  # the run succeeded, but its answer was cut off or is a refusal
    DETACHED = 130


EXIT_CODE_BY_EVENT = {"done": ExitCode.SUCCEEDED, "error": ExitCode.FAILED, "cancel": ExitCode.CANCELLED}
EXIT_CODE_BY_STATUS = {
    "succeeded": ExitCode.SUCCEEDED,
    "failed": ExitCode.FAILED,
    "cancelled": ExitCode.CANCELLED,
    "parked": ExitCode.PARKED,
}

# With these finish reasons the answer is not the one that was asked for.
NOTE_BY_FINISH_REASON = {
    "length": "the answer was cut off at the token limit",
    "max_tokens": "the answer was cut off at the token limit",
    "content_filter": "the provider's content filter cut the answer off",
    "refusal": "the model refused",
}


class UsageError(Exception):
    """The command was called wrongly; the message says how to call it."""


class KeyNotFound(Exception):
    """There is no such API key."""


def exit_code_of(exc: BaseException) -> ExitCode | None:
    """Return the exit code of an expected error; None for an unexpected one."""
    match exc:
        case UsageError() | BadCursor() | InvalidRequest() | httpx.InvalidURL() | UnicodeError():
            return ExitCode.USAGE
        case BadKey() | BadUserName() | Unauthenticated() | Forbidden():
            return ExitCode.UNAUTHORIZED
        case Unreachable() | Unavailable() | StreamBroken():
            return ExitCode.UNREACHABLE
        case Refused() | KeyNotFound():
            return ExitCode.REFUSED
        case ClientError() | StagebusError():
            return ExitCode.FAILED
        case _:
            return None
