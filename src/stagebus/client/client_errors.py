"""The errors of the client, one class per kind.

    Refused                 the gateway refused; `code` is the problem's stable name
      InvalidRequest        400, 413, 415, 422: `fields` says what to change
      Unauthenticated       401: no key, or an invalid one
      Forbidden             403: the key may not do this
      NotFound              404: no such run, stage or approval
      Conflict              409, 410: decided or ended differently, or the idempotency key belongs to another or a deleted run
      RateLimited           429: `retry_after_s` says when to try again
      Unavailable           5xx: all retries failed
    BadKey                  not a valid API key
    BadCursor               not a valid cursor
    Unreachable             no gateway answers
    StreamBroken            the stream contains something other than events, even after retries
    RunFailed, RunCancelled the run did not succeed, and its result was requested

Spec: RFC 9457
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final


class ClientError(Exception):
    """The base class of all errors of this package."""


class Refused(ClientError):
    """The gateway refused a request."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        self.status = status
        self.code = str(problem.get("code", ""))
        self.fields: Sequence[Mapping[str, str]] = tuple(problem.get("errors") or ())
        self.retry_after_s = retry_after_s
        super().__init__(str(problem.get("detail") or problem.get("title") or f"the gateway answered {status}"))

    @classmethod
    def of(cls, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> "Refused":
        """Return the error class for a status, as an instance."""
        kind = _KIND_BY_STATUS.get(status, Unavailable if status >= _SERVER_ERRORS_FROM else Refused)
        # A 422, but no change of the request would fix it.
        if problem.get("code") == "idempotency_conflict":
            kind = Conflict
        return kind(status, problem, retry_after_s)


class InvalidRequest(Refused):
    """The request is invalid; `fields` names each invalid field."""


class Unauthenticated(Refused):
    """The key is missing or invalid."""


class Forbidden(Refused):
    """The key's scopes do not allow the request."""


class NotFound(Refused):
    """There is no such run, stage or approval."""


class Conflict(Refused):
    """The call was decided differently before, the run has ended, or a run of the idempotency key was deleted."""


class RateLimited(Refused):
    """A limit was reached; `retry_after_s` says when to try again."""


class Unavailable(Refused):
    """The gateway cannot answer at the moment."""


class BadKey(ClientError):
    """The text is not a valid API key; nothing was sent."""

    def __init__(self) -> None:
        # The message leaves out the key, because messages are logged.
        super().__init__("the API key contains characters that no key has: line ends, spaces or non-ASCII letters")


class BadUserName(ClientError):
    """The text cannot be the name of a user; nothing was sent."""

    def __init__(self) -> None:
        super().__init__("the name of a user is one line of text without control characters")


class BadCursor(ClientError):
    """The text is not an event id and does not mean the start."""


class Unreachable(ClientError):
    """No gateway answers at the address."""

    def __init__(self, url: str, cause: BaseException | None = None) -> None:
        why = f" ({cause})" if cause is not None and str(cause) else ""
        super().__init__(
            f"no gateway answers at {url}{why}: start one with `stagebus up`, or set its address "
            "with the client's url, --url or STAGEBUS_URL"
        )


class StreamBroken(ClientError):
    """The stream contains something other than events of a run, even after retries."""


class RunFailed(ClientError):
    """The run ended with an error; `code` is its stable name, `text` the answer as far as it was written."""

    def __init__(self, error: Mapping[str, Any], text: str = "") -> None:
        self.code = str(error.get("code", ""))
        self.text = text
        super().__init__(str(error.get("error", "")))


class RunCancelled(ClientError):
    """The run was cancelled; `text` is the answer as far as it was written."""

    def __init__(self, run_id: str, reason: str | None = None, text: str = "") -> None:
        self.reason = reason
        self.text = text
        super().__init__(f"run {run_id} was cancelled" + (f": {reason}" if reason else ""))


_SERVER_ERRORS_FROM: Final = 500
_KIND_BY_STATUS: Final[Mapping[int, type[Refused]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
}
