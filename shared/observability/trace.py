"""The ids that connect a request with its log lines, its run and the calls to providers.

    X-Request-ID: 0af7651916cd43dd                                        the client's, or a new one
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01  the client's, or the current span's
    baggage: tenant=acme                                                  the client's, as far as the operator allows

They are stored in the run's record, from where they get into the worker's log and its requests to providers and tools.
A context variable holds the trace of the current task and of the tasks that it starts.
Spec: https://www.w3.org/TR/trace-context/, https://www.w3.org/TR/baggage/
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

REQUEST_ID: Final = "X-Request-ID"
TRACEPARENT: Final = "traceparent"
BAGGAGE: Final = "baggage"
# What W3C requires of those who pass baggage on is more; a run's record keeps it for as long as the run.
BAGGAGE_MAX_CHARS: Final = 2048

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# A list member: a token, its percent-encoded value, and properties, which are not read.
_MEMBER: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*([!#-+\--:<-\[\]-~]*)\s*(?:;[!-+\--~ \t]*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """The ids of a request and its run. All are empty outside of a request."""

    request_id: str = ""
    traceparent: str = ""
    run_id: str = ""
    baggage: str = ""

    @classmethod
    def from_headers(
        cls, request_id: str | None, traceparent: str | None, baggage: str = "", baggage_keys: Collection[str] = ()
    ) -> "Trace":
        """Reads the trace of a request. Creates a request id if the client's is missing or invalid.

        Args:
            baggage_keys: the entries of the baggage that are kept.
        """
        is_valid_id = request_id is not None and _REQUEST_ID.fullmatch(request_id)
        is_valid_traceparent = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
        return cls(
            str(request_id) if is_valid_id else uuid4().hex,
            str(traceparent) if is_valid_traceparent else "",
            baggage=_kept_baggage(baggage, baggage_keys) if baggage else "",
        )

    def headers(self) -> dict[str, str]:
        """Returns the headers for requests to other services."""
        named = {REQUEST_ID: self.request_id, TRACEPARENT: self.traceparent, BAGGAGE: self.baggage}
        return {name: value for name, value in named.items() if value}

    def fields(self) -> dict[str, str]:
        """Returns the fields for log lines."""
        named = {"request_id": self.request_id, "run": self.run_id}
        return {name: value for name, value in named.items() if value}


def _kept_baggage(header: str, keys: Collection[str]) -> str:
    """Returns the well-formed entries with these keys, without their properties, up to `BAGGAGE_MAX_CHARS`."""
    kept: list[str] = []
    for member in header.split(","):
        matched = _MEMBER.fullmatch(member)
        if matched and matched[1] in keys:
            kept.append(f"{matched[1]}={matched[2]}")
        if len(",".join(kept)) > BAGGAGE_MAX_CHARS:
            kept.pop()
            break
    return ",".join(kept)


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
