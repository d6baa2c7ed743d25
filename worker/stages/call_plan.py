"""Plans a round of tool calls before any of them runs. Sans-IO."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stagebus.shared.domain.call_results import OPEN_CALLS_MAX
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ToolResult
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.shared.runtime.exact_json import parse_json
from stagebus.shared.runtime.json_text import compact_json
from stagebus.worker.tools.tool import Tool
from stagebus.worker.tools.toolset import Toolset, no_such_tool

OUTCOME_UNKNOWN: Final = (
    "the outcome of this call is unknown: its worker died while it ran, and the tool may not run twice; "
    "look at its effects before calling it again"
)
CUT_OFF: Final = (
    "this call was not carried out: your answer was cut off before its end, so the arguments may be incomplete; "
    "call the tool again with shorter arguments, or say that it cannot be done"
)


@dataclass(frozen=True, slots=True)
class LoggedApprovals:
    """The approvals that the log holds: when each request expires (Unix ms) and what was decided, by call id."""

    expires_at: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The progress of a tools stage as the log holds it: started calls, results, approvals and waiting calls.

    Attributes:
        deferred: when each call expires that was announced as waiting for a result, Unix ms.
    """

    started: frozenset[str] = frozenset()
    results: Mapping[str, ToolResult] = field(default_factory=dict)
    approvals: LoggedApprovals = field(default_factory=LoggedApprovals)
    deferred: Mapping[str, int] = field(default_factory=dict)


class PlannedCall(NamedTuple):
    """One call and how it is handled.

    It runs with `tool`; or, without a tool, it is answered with `refusal`; or it shares the result of the
    identical call `same_as`.
    """

    request: ToolCallRequest
    tool: Tool | None = None
    refusal: str = ""
    same_as: str | None = None


def plan_calls(
    calls: Sequence[ToolCallRequest],
    toolset: Toolset,
    *,
    allowed: Collection[str],
    calls_max: int,
    started: Collection[str],
    is_cut_off: bool = False,
) -> list[PlannedCall]:
    """Decides how each call is handled. Every attempt gets the same plan, except for calls in `started`.

    Args:
        allowed: the tools that the request offers.
        calls_max: calls beyond this number are refused.
        started: calls that may have run in an attempt whose worker died, without those that wait for a result.
        is_cut_off: whether the answer with the calls ended before the model had finished; none of them runs.
    """
    plan: list[PlannedCall] = []
    waiting = 0
    first_by_key: dict[tuple[str, str], str] = {}
    for index, call in enumerate(calls):
        tool = toolset.find(call.name) if call.name in allowed else None
        if tool is None:
            plan.append(PlannedCall(call, refusal=no_such_tool(call.name, allowed)))
        elif is_cut_off:
            plan.append(PlannedCall(call, refusal=CUT_OFF))
        elif index >= calls_max:
            plan.append(PlannedCall(call, refusal="too many calls at once; call it again on its own"))
        elif (first := first_by_key.setdefault(_identity_key(call), call.id)) != call.id:
            plan.append(PlannedCall(call, same_as=first))
        elif call.id in started and not tool.idempotent and not tool.may_wait:
            plan.append(PlannedCall(call, refusal=OUTCOME_UNKNOWN))
        elif tool.may_wait and waiting == OPEN_CALLS_MAX:
            plan.append(PlannedCall(call, refusal="too many calls wait at once; call it again on its own"))
        else:
            waiting += tool.may_wait
            plan.append(PlannedCall(call, tool))
    return plan


def _identity_key(call: ToolCallRequest) -> tuple[str, str]:
    """Returns a key that identical calls share: the name and the arguments in canonical JSON."""
    try:
        return call.name, compact_json(parse_json(call.arguments or "{}"), sort_keys=True)
    except ValueError:
        return call.name, call.arguments
