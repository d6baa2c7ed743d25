"""The approval gate of a tools stage: calls wait here until a person approves, denies or answers them.

Each call is asked about once, by an event. The decision arrives in the run's record, or the call
expires, which denies it. When nothing else is left to do, the stage parks the run.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ApprovalDecided, ApprovalRequired, InputRequired
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.stages.answer_source import AnswerSnapshot, AnswerSource
from stagebus.worker.stages.call_plan import LoggedApprovals, PlannedCall
from stagebus.worker.tools.tool_results import ToolReply

EXPIRED = "nobody decided on this call in time; it was not run"
DENIED = "this call was denied; it was not run"


class WaitingCall(NamedTuple):
    """A call that waits for a decision; `question` is set when the model asks the user."""

    call: ToolCallRequest
    question: str | None = None


class ApprovalGate:
    """Holds the calls of one stage that wait for a decision."""

    def __init__(self, stage_id: str, source: AnswerSource, logged: LoggedApprovals, wait_s: float) -> None:
        """`logged` holds the requests and decisions of earlier attempts; new requests expire after `wait_s`."""
        self._stage_id = stage_id
        self._source = source
        self._expires_at = dict(logged.expires_at)
        self._decisions = dict(logged.decisions)
        self._wait_ms = round(wait_s * 1000)
        self._waiting: dict[str, WaitingCall] = {}

    @property
    def has_waiting(self) -> bool:
        """True while any call waits."""
        return bool(self._waiting)

    def holds(self, planned: PlannedCall) -> bool:
        """Returns True if this call waits, or the identical call whose result it shares."""
        return _deciding_id(planned) in self._waiting

    async def hold(self, calls: Sequence[WaitingCall]) -> list[ApprovalRequired | InputRequired]:
        """Makes the undecided ones of these calls wait; returns a request event for each that has none in the log."""
        waiting = [held for held in calls if held.call.id not in self._decisions]
        new = [held for held in waiting if held.call.id not in self._expires_at]
        expires_at = (await self._source.read()).now_ms + self._wait_ms if new else 0
        self._expires_at |= {held.call.id: expires_at for held in new}
        self._waiting = {held.call.id: held for held in waiting}
        return [self._request_event(held, expires_at) for held in new]

    async def take_decided(self, snapshot: AnswerSnapshot) -> list[ApprovalDecided]:
        """Returns an event for each call decided or expired since the last time; those calls wait no longer."""
        found = {call_id: snapshot.decisions[call_id] for call_id in self._waiting if call_id in snapshot.decisions}
        for call_id in self._waiting.keys() - found.keys():
            if self._expires_at[call_id] <= snapshot.now_ms:
                found[call_id] = await self._source.expire(call_id)
        for call_id in found:
            del self._waiting[call_id]
        self._decisions |= found
        return [encode(self._stage_id, call_id, decision) for call_id, decision in found.items()]

    def with_approved_arguments(self, planned: PlannedCall) -> PlannedCall:
        """Returns the call with the arguments that its approval changed, if it changed them."""
        decision = self._decisions.get(_deciding_id(planned))
        if decision is None or decision.arguments is None:
            return planned
        return planned._replace(request=planned.request.model_copy(update={"arguments": decision.arguments}))

    def reply_to(self, planned: PlannedCall) -> ToolReply | None:
        """Returns the reply for the model if a person denied or answered the call; None if the call may run."""
        match self._decisions.get(_deciding_id(planned)):
            case None | Decision(decision="approve"):
                return None
            case Decision(decision="answer", text=text):
                return ToolReply(text or "")
            case Decision(is_expired=True):
                return ToolReply(EXPIRED, is_error=True)
            case Decision(reason=None):
                return ToolReply(DENIED, is_error=True)
            case Decision(reason=reason):
                return ToolReply(f"{DENIED}; the reason given: {reason}", is_error=True)

    def expiries(self) -> list[int]:
        """Returns when each waiting call expires, Unix ms by Redis's clock."""
        return [self._expires_at[call_id] for call_id in self._waiting]

    def _request_event(self, held: WaitingCall, expires_at: int) -> ApprovalRequired | InputRequired:
        stage_id, call = self._stage_id, held.call
        if held.question is not None:
            return InputRequired(stage_id=stage_id, call_id=call.id, question=held.question, expires_at=expires_at)
        return ApprovalRequired(
            stage_id=stage_id, call_id=call.id, name=call.name, arguments=call.arguments, expires_at=expires_at
        )


def _deciding_id(planned: PlannedCall) -> str:
    """Returns the id of the call whose decision counts: the first of identical calls."""
    return planned.same_as or planned.request.id


def encode(stage_id: str, call_id: str, decision: Decision) -> ApprovalDecided:
    """Returns the decision as the event that the log stores."""
    return ApprovalDecided(stage_id=stage_id, call_id=call_id, **decision.model_dump())


def decode(event: ApprovalDecided) -> Decision:
    """Inverse of `encode`."""
    return Decision(**event.model_dump(include=set(Decision.model_fields)))
