"""Codec of the results that calls wait for, of the leases of the clients that run them, and of tasks: the fields of `keys.results`.

    result 5204-118 call_1    {"content":"18.5 degrees"}
    lease 5204-118 call_1     1769860830000 0 tab-7f3a
    task 5204-118 call_1      {"task_id":"786512e2",…}, see `polled_task`

A field names a call by the event that completed the model's answer with it, its `ref`, and by its id: if Redis loses its
tail, the model may be asked again and give another call the same id.
"""

from typing import Final, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict

# Limits of what clients and tools ask for.
EXPIRES_IN_MAX_S: Final = 7 * 86400.0
OPEN_CALLS_MAX: Final = 64
HOLDER_MAX_CHARS: Final = 64
CALL_LEASE_S: Final = 30.0


class CallResult(BaseModel):
    """The result of a call as the model gets it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    content: str
    is_error: bool = False


# The result if nobody gives one in time.
EXPIRED: Final = CallResult(content="no result of this call came in time; its outcome is unknown", is_error=True)
# The result of a call that runs once, if the client that runs it goes away.
LAPSED: Final = CallResult(
    content="the outcome of this call is unknown: the client that ran it went away, and the call may not run twice; "
    "look at its effects before calling it again",
    is_error=True,
)


class CallLease(NamedTuple):
    """A client's time-limited right to run a call; `is_once`: no other client gets it afterwards."""

    until_ms: int
    is_once: bool
    holder: str


def result_field(ref: str, call_id: str) -> str:
    """Returns the field of a call's result."""
    return f"result {ref} {call_id}"


def lease_field(ref: str, call_id: str) -> str:
    """Returns the field of the lease on a call."""
    return f"lease {ref} {call_id}"


def task_field(ref: str, call_id: str) -> str:
    """Returns the field of the task that a call has become."""
    return f"task {ref} {call_id}"


def is_task_field(name: bytes) -> bool:
    """Returns whether a field is that of a task."""
    return name.startswith(b"task ")


def encode(result: CallResult) -> str:
    """Encodes a result. Equal results give equal texts."""
    return orjson.dumps(result.model_dump(exclude_defaults=True), option=orjson.OPT_SORT_KEYS).decode()


def decode(text: str | bytes) -> CallResult:
    """Decodes a result; the inverse of `encode`."""
    return CallResult.model_validate_json(text)


def decode_lease(text: bytes) -> CallLease:
    """Decodes a lease, which `lease_call.lua` writes."""
    until_ms, once, holder = text.decode().split(" ", 2)
    return CallLease(int(until_ms), once == "1", holder)
