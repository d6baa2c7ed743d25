"""Requests of a run to the outside, read from its log, and decisions on those to a person.

A call can be decided if the log asks about it. The first decision is final.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    CallDeferred,
    InputRequired,
    ToolResult,
    decode,
)
from stagebus.shared.domain.runs import TOOLS, RunRecord
from stagebus.shared.errors import ApprovalConflict, ApprovalNotFound, InvalidRequest
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import parking, waiting_calls

Ask = ApprovalRequired | InputRequired
Pending = Ask | CallDeferred

_NAMES: Final = frozenset(event.event.encode() for event in (ApprovalRequired, InputRequired))
_PENDING_NAMES: Final = _NAMES | {CallDeferred.event.encode()}
_CLOSING: Final = frozenset(event.event.encode() for event in (ApprovalDecided, ToolResult))


async def read_pending(redis: Redis, run: RunRecord) -> list[Pending]:
    """Returns the run's pending requests: to a person, then the calls that wait for a result; each in the order of asking."""
    stage_ids = [] if run.is_terminal else await _tools_stages(redis, run.run_id)
    pending: list[Pending] = []
    for stage_id in stage_ids[:1]:  # in the earlier ones every call has its result
        pending = _pending_of(await log_reader.read_stage(redis, run.run_id, stage_id))
    asks = [ask for ask in pending if not isinstance(ask, CallDeferred) and ask.call_id not in run.decisions]
    calls = [call for call in pending if isinstance(call, CallDeferred)]
    return [*asks, *await waiting_calls.without_results(redis, run.run_id, calls)]


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


def _pending_of(events: Sequence[StoredEvent]) -> list[Pending]:
    closing = [decode(event.event.decode(), event.data) for event in events if event.event in _CLOSING]
    decided = {event.call_id for event in closing if isinstance(event, ApprovalDecided)}
    answered = {event.call_id for event in closing if isinstance(event, ToolResult)}
    asks = {}
    for stored in events:
        if stored.event in _PENDING_NAMES:
            ask = decode(stored.event.decode(), stored.data)
            assert isinstance(ask, Pending)
            is_closed = ask.call_id in (answered if isinstance(ask, CallDeferred) else answered | decided)
            if not is_closed:
                asks[ask.call_id] = ask
    return list(asks.values())


def _in_words(decision: Decision) -> str:
    if decision.is_expired:
        return "it was denied because nobody decided in time"
    words = {"approve": "it was approved", "deny": "it was denied", "answer": "it was answered"}[decision.decision]
    return f"{words} with other arguments" if decision.arguments is not None else words
