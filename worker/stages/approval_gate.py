"""The gate of a tools stage: calls wait at it for a person, and pass, or are turned away.

Each is asked for once, by an event; the answer comes into the run's record, or the clock
denies it. When nothing else is left to do the stage parks: see `Parked`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.events import ApprovalDecided, ApprovalRequired, InputRequired, ToolCallRequest
from stagebus.shared.errors import StagebusError
from stagebus.worker.stages.call_plan import LoggedApprovals, PlannedCall
from stagebus.worker.tools.tool_results import ToolReply

EXPIRED = "nobody decided on this call in time; it was not run"
DENIED = "this call was denied; it was not run"


class DecisionSnapshot(NamedTuple):
    """The decisions by now, Redis's time in Unix ms, and the record's field as it was read."""

    decisions: Mapping[str, Decision]
    now_ms: int
    seen: bytes


class DecisionSource(Protocol):
    """Where decisions are found."""

    async def look(self) -> DecisionSnapshot:
        """All decisions by now."""

    async def expire(self, call_id: str) -> Decision:
        """Decide a call whose time is over; the decision that stands."""

    async def until_decided(self) -> None:
        """Return when a look may show more."""


class Parked(StagebusError):
    """Nothing is left to do until somebody decides; the run leaves its worker.

    Attributes:
        due_ms: when the first of its calls expires, Unix ms by Redis's clock.
        seen: the decisions that were known, as the record has them.
    """

    code = "parked"
    title = "The run waits for a person"

    def __init__(self, due_ms: int, seen: bytes) -> None:
        super().__init__("the run waits for a person")
        self.due_ms = due_ms
        self.seen = seen


class WaitingCall(NamedTuple):
    """A call that waits, and the question where it is the model that asks."""

    call: ToolCallRequest
    question: str | None = None


class ApprovalGate:
    """The calls of one stage that wait."""

    def __init__(self, stage_id: str, approvals: DecisionSource, asked: LoggedApprovals, wait_s: float) -> None:
        """`asked` is what the log has; further calls wait for `wait_s`."""
        self._stage_id = stage_id
        self._approvals = approvals
        self._expires_at = dict(asked.expires_at)
        self._decisions = dict(asked.decisions)
        self._wait_ms = round(wait_s * 1000)
        self._waiting: dict[str, WaitingCall] = {}
        self._seen = b""

    @property
    def is_waiting(self) -> bool:
        """Whether calls wait."""
        return bool(self._waiting)

    def holds(self, planned: PlannedCall) -> bool:
        """Whether this call waits, or the one whose result it shares."""
        return _decided_id(planned) in self._waiting

    async def hold(self, waiting: Sequence[WaitingCall]) -> list[ApprovalRequired | InputRequired]:
        """Let these calls wait, if nothing was decided yet; the events for those that were never asked for."""
        waiting = [held for held in waiting if held.call.id not in self._decisions]
        new = [held for held in waiting if held.call.id not in self._expires_at]
        expires_at = (await self._approvals.look()).now_ms + self._wait_ms if new else 0
        self._expires_at |= {held.call.id: expires_at for held in new}
        self._waiting = {held.call.id: held for held in waiting}
        return [self._ask(held, expires_at) for held in new]

    async def decided(self) -> list[ApprovalDecided]:
        """What was decided since the last time; those calls wait no longer."""
        look = await self._approvals.look()
        self._seen = look.seen
        found = {call_id: look.decisions[call_id] for call_id in self._waiting if call_id in look.decisions}
        for call_id in self._waiting.keys() - found.keys():
            if self._expires_at[call_id] <= look.now_ms:
                found[call_id] = await self._approvals.expire(call_id)
        for call_id in found:
            del self._waiting[call_id]
        self._decisions |= found
        return [encode(self._stage_id, call_id, decision) for call_id, decision in found.items()]

    def approved(self, planned: PlannedCall) -> PlannedCall:
        """The call with the arguments that its approval gave it, if it did."""
        decision = self._decisions.get(_decided_id(planned))
        if decision is None or decision.arguments is None:
            return planned
        return planned._replace(request=planned.request.model_copy(update={"arguments": decision.arguments}))

    def reply_to(self, planned: PlannedCall) -> ToolReply | None:
        """What the model is told of a call that a person kept from running; None for one that may run."""
        match self._decisions.get(_decided_id(planned)):
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

    def park(self) -> Parked:
        """What to raise when nothing else is left to do."""
        return Parked(min(self._expires_at[call_id] for call_id in self._waiting), self._seen)

    async def watch(self, on_decided: Callable[[], None]) -> None:
        """Say whenever more may have been decided; for ever."""
        while True:
            await self._approvals.until_decided()
            on_decided()

    def _ask(self, held: WaitingCall, expires_at: int) -> ApprovalRequired | InputRequired:
        stage_id, call = self._stage_id, held.call
        if held.question is not None:
            return InputRequired(stage_id=stage_id, call_id=call.id, question=held.question, expires_at=expires_at)
        return ApprovalRequired(
            stage_id=stage_id, call_id=call.id, name=call.name, arguments=call.arguments, expires_at=expires_at
        )


def _decided_id(planned: PlannedCall) -> str:
    """The call whose decision counts: the first of those that are the same."""
    return planned.same_as or planned.request.id


def encode(stage_id: str, call_id: str, decision: Decision) -> ApprovalDecided:
    """A decision as the log has it."""
    return ApprovalDecided(stage_id=stage_id, call_id=call_id, **decision.model_dump())


def decode(event: ApprovalDecided) -> Decision:
    """The inverse of `encode`."""
    return Decision(**event.model_dump(include=set(Decision.model_fields)))
