"""Which request a line of a log, or a call to a provider, belongs to.

    X-Request-ID: 0af7651916cd43dd                                        the client's own, or one of ours
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01  the client's, passed on as it is

Both go from the request into the run's record, and from there to the worker, its log and its
provider. What runs on somebody's behalf is bound to their trace, as its tasks are.
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
    """Whose work this is; empty where nobody's in particular."""

    request_id: str = ""
    traceparent: str = ""
    run_id: str = ""

    @classmethod
    def from_headers(cls, request_id: str | None, traceparent: str | None) -> "Trace":
        """A request's trace: what a client sent where it is sane, and an id of ours where its own is not."""
        is_sane = request_id is not None and _REQUEST_ID.fullmatch(request_id)
        is_trace = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
        return cls(str(request_id) if is_sane else uuid4().hex, str(traceparent) if is_trace else "")

    def headers(self) -> dict[str, str]:
        """What is sent along to those who are asked on its behalf."""
        named = {REQUEST_ID: self.request_id, TRACEPARENT: self.traceparent}
        return {name: value for name, value in named.items() if value}

    def fields(self) -> dict[str, str]:
        """What stands in each line of the log."""
        named = {"request_id": self.request_id, "run": self.run_id}
        return {name: value for name, value in named.items() if value}


NO_TRACE: Final = Trace()
_current: Final[ContextVar[Trace]] = ContextVar("trace", default=NO_TRACE)


def current() -> Trace:
    """Whose work is done here."""
    return _current.get()


def bind(trace: Trace) -> None:
    """The rest of this task is done on behalf of the trace."""
    _current.set(trace)


@contextmanager
def bound(trace: Trace) -> Iterator[None]:
    """What is done within, and in tasks that begin within, is done on behalf of the trace."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)
