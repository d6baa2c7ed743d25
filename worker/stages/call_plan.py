"""What becomes of each call of a round, before any of them runs; sans-IO."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ToolCallRequest, ToolResult
from stagebus.worker.tools.tool import Tool
from stagebus.worker.tools.toolset import Toolset, no_such_tool

OUTCOME_UNKNOWN: Final = (
    "the outcome of this call is unknown: its worker died while it ran, and the tool may not run twice; "
    "look at its effects before calling it again"
)


@dataclass(frozen=True, slots=True)
class LoggedApprovals:
    """What the log says of the calls that waited: until when, and what was decided."""

    expires_at: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What the log says of a stage that was begun before: calls that started, results, and what was asked."""

    started: frozenset[str] = frozenset()
    results: Mapping[str, ToolResult] = field(default_factory=dict)
    asked: LoggedApprovals = field(default_factory=LoggedApprovals)


class PlannedCall(NamedTuple):
    """A call and its fate: it runs with `tool`, is refused with words for the model, or shares another's result."""

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
) -> list[PlannedCall]:
    """The fate of each call; the same for every attempt at the stage, but for what had started before.

    Args:
        allowed: the tools that the request offers.
        calls_max: further calls are refused.
        started: calls that may have run before, in an attempt that died.
    """
    plan = []
    first_by_key: dict[tuple[str, bytes], str] = {}
    for place, call in enumerate(calls):
        tool = toolset.find(call.name) if call.name in allowed else None
        if tool is None:
            plan.append(PlannedCall(call, refusal=no_such_tool(call.name, allowed)))
        elif place >= calls_max:
            plan.append(PlannedCall(call, refusal="too many calls at once; call it again on its own"))
        elif (first := first_by_key.setdefault(_key(call), call.id)) != call.id:
            plan.append(PlannedCall(call, same_as=first))
        elif call.id in started and not tool.idempotent:
            plan.append(PlannedCall(call, refusal=OUTCOME_UNKNOWN))
        else:
            plan.append(PlannedCall(call, tool))
    return plan


def _key(call: ToolCallRequest) -> tuple[str, bytes]:
    """What two calls have in common that are one: the name, and the arguments however they were written."""
    try:
        return call.name, orjson.dumps(orjson.loads(call.arguments or "{}"), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        return call.name, call.arguments.encode(errors="replace")
