"""The errors of calls that wait for a result from outside."""

from stagebus.shared.errors import StagebusError


class CallNotFound(StagebusError):
    """The run has no call of this id that waits for a result from outside, or ever did; or the call token is for another
    call.
    """

    code = "call_not_found"
    title = "No such call"
    status_hint = 404

    def __init__(self, run_id: str, call_id: str) -> None:
        super().__init__(
            f"run {run_id} has no call {call_id[:64]!r} for this; GET /runs/{run_id} lists its pending_calls"
        )


class CallHasResult(StagebusError):
    """The call has another result, or nobody gave one in time. The first result is final."""

    code = "call_has_result"
    title = "Call has a result"
    status_hint = 409

    def __init__(self, call_id: str) -> None:
        super().__init__(f"call {call_id[:64]!r} has its result; the first result is final")


class CallClaimed(StagebusError):
    """Another client runs the call. Its claim ends at `until` unless it is renewed."""

    code = "call_claimed"
    title = "Call is claimed"
    status_hint = 409

    def __init__(self, call_id: str, until_ms: int) -> None:
        super().__init__(f"another client runs call {call_id[:64]!r}")
        self.until_ms = until_ms


class ResultTooLarge(StagebusError):
    """The result is longer than STAGEBUS_TOOL_RESULT_MAX_BYTES. It is refused, not cut."""

    code = "result_too_large"
    title = "Result too large"
    status_hint = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the result is longer than the limit of {limit_bytes} bytes of UTF-8; shorten it")


class CallsUnavailable(StagebusError):
    """Some of the workers are of a version that knows neither client tools nor deferred tools. It passes when all of them
    are updated.
    """

    code = "calls_unavailable"
    title = "Waiting calls are not available yet"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "not all workers know calls that wait for a result: the operator is updating them, or has to; try again, or "
            "name only tools that workers run themselves"
        )
