"""The ids that connect a request with its log lines, its run and the calls to providers.

    X-Request-ID: 0af7651916cd43dd                                        the client's, or a new one
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01  the client's, passed on unchanged

Both are stored in the run's record, from where they get into the worker's log and its requests to the provider. A
context variable holds the trace of the current task and of the tasks that it starts.
Spec: https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

REQUEST_ID: Final = "X-Request-ID"
TRACEPARENT: Final = "traceparent"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Trace:
    """The ids of a request and its run. All are empty outside of a request."""

    request_id: str = ""
    traceparent: str = ""
    run_id: str = ""

    @classmethod
    def from_headers(cls, request_id: str | None, traceparent: str | None) -> "Trace":
        """Reads the trace of a request. Creates a request id if the client's is missing or invalid."""
        is_valid_id = request_id is not None and _REQUEST_ID.fullmatch(request_id)
        is_valid_traceparent = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
        return cls(str(request_id) if is_valid_id else uuid4().hex, str(traceparent) if is_valid_traceparent else "")

    def headers(self) -> dict[str, str]:
        """Returns the headers for requests to other services."""
        named = {REQUEST_ID: self.request_id, TRACEPARENT: self.traceparent}
        return {name: value for name, value in named.items() if value}

    def fields(self) -> dict[str, str]:
        """Returns the fields for log lines."""
        named = {"request_id": self.request_id, "run": self.run_id}
        return {name: value for name, value in named.items() if value}


NO_TRACE: Final = Trace()
_current: Final[ContextVar[Trace]] = ContextVar("trace", default=NO_TRACE)


def current() -> Trace:
    """Returns the trace of the current task."""
    return _current.get()


def bind(trace: Trace) -> None:
    """Sets the trace for the rest of this task."""
    _current.set(trace)


@contextmanager
def bound(trace: Trace) -> Iterator[None]:
    """Sets the trace inside the context, and for tasks that start there."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)
