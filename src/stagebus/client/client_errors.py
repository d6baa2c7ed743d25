"""What may go wrong between a client and a gateway, each kind with its own class.

    Refused                 the gateway said no: `code` is the problem's stable name
      InvalidRequest        400, 413, 415, 422: `fields` says what to change
      Unauthenticated       401: no key, or one that does not hold
      Forbidden             403: the key may not do this
      NotFound              404: no such run, stage or approval
      Conflict              409: it was decided or ended otherwise, or the idempotency key made another run
      RateLimited           429: `retry_after_s` says when to come again
      Unavailable           5xx: tried again for a while, in vain
    BadKey                  what is given as a key cannot be one
    BadCursor               what is given as a cursor cannot be one
    Unreachable             nobody answers
    StreamBroken            a stream has holes, however often it is asked for
    RunFailed, RunCancelled the run's own end, where its result was asked for

Spec: RFC 9457
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final


class ClientError(Exception):
    """Anything that this package raises."""


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
        """The refusal of the kind that the status says."""
        kind = _KIND_BY_STATUS.get(status, Unavailable if status >= _SERVER_ERRORS_FROM else Refused)
        # A 422, but nothing in the request would mend it.
        if problem.get("code") == "idempotency_conflict":
            kind = Conflict
        return kind(status, problem, retry_after_s)


class InvalidRequest(Refused):
    """The request does not hold; `fields` names each wrong one."""


class Unauthenticated(Refused):
    """No key came, or one that does not hold."""


class Forbidden(Refused):
    """The key's scopes do not allow this."""


class NotFound(Refused):
    """There is no such run, stage or approval."""


class Conflict(Refused):
    """It was decided otherwise before, or has ended."""


class RateLimited(Refused):
    """A limit was reached; `retry_after_s` says when to come again."""


class Unavailable(Refused):
    """The gateway cannot do it now."""


class BadKey(ClientError):
    """What is given as a key cannot be one; nothing was sent."""

    def __init__(self) -> None:
        # Not the key itself: messages are logged.
        super().__init__("the key has characters that no key has: line ends, spaces or letters beyond ASCII")


class BadCursor(ClientError):
    """What is given as a cursor is neither an event's id nor a word for the start."""


class Unreachable(ClientError):
    """Nobody answers at the gateway's address."""

    def __init__(self, url: str, cause: BaseException | None = None) -> None:
        why = f" ({cause})" if cause is not None and str(cause) else ""
        super().__init__(
            f"no gateway answers at {url}{why}: start one with `stagebus up`, or say where it is, "
            "by the client's url, by --url or by STAGEBUS_URL"
        )


class StreamBroken(ClientError):
    """What the gateway sends has holes, each time that it is asked for."""


class RunFailed(ClientError):
    """The run ended with an error; `code` is its stable name."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = str(error.get("code", ""))
        super().__init__(str(error.get("error", "")))


class RunCancelled(ClientError):
    """The run was cancelled."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} was cancelled")


_SERVER_ERRORS_FROM: Final = 500
_KIND_BY_STATUS: Final[Mapping[int, type[Refused]]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
}
