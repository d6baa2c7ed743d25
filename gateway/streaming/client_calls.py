"""Finds the points at which a run waits for its client alone: where a view's stream ends and the client runs its tools.

    stage_completed {calls: a, b, c}   call_deferred a (client)   tool_result b   call_deferred c (client) ──▶ waits for a, c

There is at most one such point for each round of calls. A call of a deferred tool and one that waits for a person keep the
stream open: others give those results.
"""

from typing import Any

from stagebus.gateway.streaming.model_pieces import is_model_stage
from stagebus.shared.domain.events import CallDeferred
from stagebus.shared.runtime.exact_json import parse_json
from stagebus.shared.runtime.json_text import compact_json

Json = dict[str, Any]


class ClientCalls:
    """The calls of a run's client tools, from the run's events.

    Attributes:
        points: the calls that each point waits for, by id.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, CallDeferred]] = []
        self._open: dict[str, tuple[str, str]] = {}  # without a result: name and canonical arguments, by call id
        self._waiting: dict[str, CallDeferred] = {}
        self._has_waited = False

    def begin_round(self, data: Json) -> None:
        """Takes the calls of a complete model stage."""
        if is_model_stage(data["stage_id"]):
            calls = (data.get("result") or {}).get("tool_calls") or ()
            self._open = {call["id"]: (call["name"], _canonical(call["arguments"])) for call in calls}
            self._waiting, self._has_waited = {}, False

    def defer(self, data: Json) -> bool:
        """Takes a `call_deferred`; returns whether the run waits for its client alone from now on."""
        if data["kind"] == "client":
            self._waiting[data["call_id"]] = CallDeferred.model_validate(data)
        return self._begins_to_wait()

    def end(self, data: Json) -> bool:
        """Takes a `tool_result`; returns whether the run waits for its client alone from now on."""
        self._open.pop(data["call_id"], None)
        self._waiting.pop(data["call_id"], None)
        return self._begins_to_wait()

    def is_answered(self, data: Json) -> bool:
        """Returns whether a `tool_result` only repeats what a client has given, for its own call or an identical one."""
        return data.get("same_as") is not None or any(data["call_id"] in point for point in self.points)

    def _begins_to_wait(self) -> bool:
        if self._has_waited or not self._waiting:
            return False
        # An identical call in the same answer gets the other one's result.
        answered = {self._open.get(call_id) for call_id in self._waiting}
        if any(call_id not in self._waiting and call not in answered for call_id, call in self._open.items()):
            return False
        self._has_waited = True
        self.points.append(dict(self._waiting))
        return True


def _canonical(arguments: str) -> str:
    try:
        return compact_json(parse_json(arguments or "{}"), sort_keys=True)
    except ValueError:
        return arguments
