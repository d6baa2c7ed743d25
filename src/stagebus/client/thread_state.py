"""Builds the state of a thread from its events: the turns, the runs that wait, the current branch. No I/O."""

from dataclasses import dataclass, field
from typing import Any

from stagebus.client.event_sequencer import GAP
from stagebus.client.run_state import RunState
from stagebus.client.thread_sequencer import TURN, TURN_DELETED, TURN_SNAPSHOT, WAITING, ThreadEvent
from stagebus.shared.domain.runs import STATUS_BY_TERMINAL_EVENT

Json = dict[str, Any]

_ENDED = frozenset(status.value for status in STATUS_BY_TERMINAL_EVENT.values())


@dataclass
class TurnState:
    """One turn of a thread.

    Attributes:
        parent_run_id: the turn that it follows; None at the root.
        seq: its place among all turns, from 1.
        messages: the new messages of its request.
        run: what its events have shown; for a turn whose log has expired only the status.
        result: the messages of its result, if its log has expired; else None.
        is_deleted: its run was deleted; the turns that follow it stay.
    """

    run_id: str
    parent_run_id: str | None
    seq: int
    messages: list[Json] = field(default_factory=list)
    run: RunState = field(default_factory=RunState)
    result: list[Json] | None = None
    is_deleted: bool = False

    @property
    def text(self) -> str:
        """The answer so far."""
        if self.result is None:
            return self.run.text
        texts = [message.get("content") for message in self.result if message.get("role") == "assistant"]
        return next((text for text in reversed(texts) if isinstance(text, str)), "")

    @property
    def is_ended(self) -> bool:
        """True if the run has ended or was deleted."""
        return self.is_deleted or self.run.status in _ENDED or self.run.status == "lost"


class ThreadState:
    """The state of a thread, built from its events with `apply`."""

    def __init__(self) -> None:
        self.turns: dict[str, TurnState] = {}
        self.waiting: list[Json] = []

    @property
    def active(self) -> TurnState | None:
        """The turn whose run works or waits for somebody."""
        return next((turn for turn in reversed(self.turns.values()) if not turn.is_ended), None)

    @property
    def branch(self) -> list[TurnState]:
        """The turns of the newest branch, from the root on, as far as the events have shown them; without deleted ones."""
        newest = max(self.turns.values(), key=lambda turn: turn.seq, default=None)
        path: list[TurnState] = []
        while newest is not None:
            if not newest.is_deleted:
                path.append(newest)
            newest = self.turns.get(newest.parent_run_id or "")
        return path[::-1]

    def apply(self, received: ThreadEvent) -> None:
        """Update the state with one event."""
        data = received.data
        match received.event:
            case _ if received.run_event is not None and received.run_id in self.turns:
                self.turns[received.run_id].run.apply(received.run_event)
            case event if event == TURN:
                turn = TurnState(received.run_id, data["parent_run_id"], data["seq"], data["messages"])
                known = self.turns.get(received.run_id)
                self.turns[received.run_id] = turn if known is None else _with_run(turn, known)
            case event if event == TURN_SNAPSHOT:
                turn = TurnState(received.run_id, data["parent_run_id"], data["seq"], data["messages"])
                turn.result, turn.run.status = data["result"], data["status"]
                self.turns[received.run_id] = turn
            case event if event == TURN_DELETED:
                turn = TurnState(received.run_id, data["parent_run_id"], data["seq"], is_deleted=True)
                self.turns[received.run_id] = turn
            case event if event == GAP and received.run_id:
                self.turns.pop(received.run_id, None)
            case event if event == GAP:
                self.turns.clear()
            case event if event == WAITING:
                self.waiting = data["runs"]


def _with_run(turn: TurnState, known: TurnState) -> TurnState:
    turn.run = known.run
    return turn
