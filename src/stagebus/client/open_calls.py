"""Tracks the calls of client tools in a run's events: which of them this client has to answer; no I/O."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple
from uuid import uuid4

from stagebus.client.event_sequencer import GAP, RunEvent
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT

Json = dict[str, Any]
# A function for each client tool, called with the arguments of a call by name.
ClientTools = Mapping[str, Callable[..., Any]]

# A claim lasts 30 s.
RENEW_S: Final = 10.0
RETRY_S: Final = 1.0


class OpenCall(NamedTuple):
    """A call that waits for a client; `ref` and `call_id` together name it."""

    ref: str
    call_id: str
    name: str
    arguments: str
    once: bool


class CallOutcome(NamedTuple):
    """The result of a call."""

    content: str
    is_error: bool = False


class OpenCalls:
    """The calls of one run that this client has to answer, and the results that it has found.

    Attributes:
        holder: this client's name in its claims.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.holder = uuid4().hex
        self._names = names
        self._open: dict[str, OpenCall] = {}
        self._outcomes: dict[OpenCall, CallOutcome] = {}

    def apply(self, received: RunEvent) -> OpenCall | None:
        """Take an event; return the call that it opens for this client, if it opens one."""
        data = received.data
        if received.event == GAP or received.event in STATUS_BY_TERMINAL_EVENT:
            self._open.clear()  # after a gap, what is open still comes again
        elif received.event == "tool_result":
            self._open.pop(data["call_id"], None)
        elif received.event == "call_deferred" and data["kind"] == "client" and data["name"] in self._names:
            call = OpenCall(data["ref"], data["call_id"], data["name"], data["arguments"], bool(data.get("once")))
            self._open[call.call_id] = call
            return call
        return None

    def close(self) -> None:
        """Forget the open calls: nobody follows the run any more."""
        self._open.clear()

    def is_open(self, call: OpenCall) -> bool:
        """Return True while the call has no result in the events."""
        return self._open.get(call.call_id) == call

    def outcome_of(self, call: OpenCall) -> CallOutcome | None:
        """Return the result that this client has found before; then the function does not run again."""
        return self._outcomes.get(call)

    def keep(self, call: OpenCall, outcome: CallOutcome) -> None:
        """Keep a result, in case the gateway loses it."""
        self._outcomes[call] = outcome


def outcome_of_value(value: Any) -> CallOutcome:
    """Return a function's return value as a result: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return CallOutcome(value)
    try:
        return CallOutcome(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError) as exc:
        return outcome_of_error(exc)


def outcome_of_error(error: BaseException) -> CallOutcome:
    """Return a function's exception as a result, which the model can read."""
    return CallOutcome(f"{type(error).__name__}: {error}", is_error=True)
