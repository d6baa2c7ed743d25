"""Pending approvals and questions of a run, read from its log, and decisions on them.

A call can be decided if the log asks about it. The first decision is final.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ApprovalDecided, ApprovalRequired, InputRequired, ToolResult, decode
from stagebus.shared.domain.runs import TOOLS, RunRecord
from stagebus.shared.errors import ApprovalConflict, ApprovalNotFound, InvalidRequest
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import parking

Ask = ApprovalRequired | InputRequired

_NAMES: Final = frozenset(event.event.encode() for event in (ApprovalRequired, InputRequired))
_CLOSING: Final = frozenset(event.event.encode() for event in (ApprovalDecided, ToolResult))


async def read_pending(redis: Redis, run: RunRecord) -> list[Ask]:
    """Returns the run's pending requests to a person, in the order of asking."""
    stage_ids = [] if run.is_terminal else await _tools_stages(redis, run.run_id)
    asks: dict[str, Ask] = {}
    for stage_id in stage_ids[:1]:  # in the earlier ones every call has its result
        asks = _pending_of(await log_reader.read_stage(redis, run.run_id, stage_id))
    return [ask for call_id, ask in asks.items() if call_id not in run.decisions]


async def decide(redis: Redis, run: RunRecord, call_id: str, decision: Decision) -> None:
    """Decides a call. Repeating the same decision changes nothing.

    Raises:
        ApprovalNotFound: the run has never asked about the call.
        InvalidRequest: the run asked a question and got an approval, or the reverse.
        ApprovalConflict: the call has another decision.
        RunEnded: the run ended without a decision.
    """
    ask = await _find(redis, run.run_id, call_id)
    wanted = "answer" if isinstance(ask, InputRequired) else "approve"
    if decision.decision not in (wanted, "deny"):
        message = f"call {call_id[:64]!r} takes {wanted} or deny"
        raise InvalidRequest(message, [{"field": "decision", "message": message}])
    mine = decisions.encode(decision)
    stored = await parking.decide(redis, run.run_id, call_id, mine)
    if stored != mine:
        raise ApprovalConflict(call_id, _in_words(decisions.decode(stored)))


async def _find(redis: Redis, run_id: str, call_id: str) -> Ask:
    for stage_id in await _tools_stages(redis, run_id):
        asks = _asks_of(await log_reader.read_stage(redis, run_id, stage_id))
        if call_id in asks:
            return asks[call_id]
    raise ApprovalNotFound(run_id, call_id)


async def _tools_stages(redis: Redis, run_id: str) -> list[str]:
    """Returns the tools stages that the run has begun, the last one first."""
    head = await log_reader.read_head(redis, run_id)
    return [stage_id for stage_id in reversed(head.stage_ids) if stage_id.startswith(TOOLS)]


def _asks_of(events: Sequence[StoredEvent]) -> Mapping[str, Ask]:
    asks = (decode(event.event.decode(), event.data) for event in events if event.event in _NAMES)
    return {ask.call_id: ask for ask in asks if isinstance(ask, ApprovalRequired | InputRequired)}


def _pending_of(events: Sequence[StoredEvent]) -> dict[str, Ask]:
    closing = (decode(event.event.decode(), event.data) for event in events if event.event in _CLOSING)
    closed_ids = {event.call_id for event in closing if isinstance(event, ApprovalDecided | ToolResult)}
    return {call_id: ask for call_id, ask in _asks_of(events).items() if call_id not in closed_ids}


def _in_words(decision: Decision) -> str:
    if decision.is_expired:
        return "it was denied because nobody decided in time"
    words = {"approve": "it was approved", "deny": "it was denied", "answer": "it was answered"}[decision.decision]
    return f"{words} with other arguments" if decision.arguments is not None else words
