"""A tools stage that several attempts run one after the other, without Redis."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Event, ToolResult
from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.shared.log.log_page import StoredEvent
from stagebus.worker.execution.history import checkpoints_of
from stagebus.worker.stages.answer_source import Parked
from stagebus.worker.stages.call_runner import RunIdentity
from stagebus.worker.stages.deferred_calls import CallTerms
from stagebus.worker.stages.tools_stage import RoundLimits, tools_stage
from stagebus.worker.tools.toolset import Toolset
from tests.support.fake_approver import FakeApprover

WAIT_S = 60


class Stage:
    """A tools stage over several attempts, and its log."""

    def __init__(self, toolset: Toolset, calls: Sequence[ToolCallRequest], person: FakeApprover, **terms: Any) -> None:
        self._toolset = toolset
        self._terms = CallTerms(**terms)
        self._calls = calls
        self._person = person
        self.timeout_s = 60.0
        self.log: list[Event] = []

    async def attempt(self, dies_after: str = "") -> Parked | None:
        """Continues from the log until the stage ends or parks, or its worker dies after an event of that name."""
        stored = [
            StoredEvent(str(EventId(1, i)).encode(), "tools", event.event.encode(), event.data())
            for i, event in enumerate(self.log, 1)
        ]
        checkpoints = checkpoints_of(stored)
        events = tools_stage(
            "tools", self._calls, self._toolset, allowed=frozenset(self._toolset.names()),
            identity=RunIdentity("01RUN", "acme", 7), limits=RoundLimits(9, self.timeout_s, WAIT_S),
            checkpoints=checkpoints, source=self._person, terms=self._terms,
            until_stored=lambda: asyncio.sleep(0),
        )  # fmt: skip
        try:
            async with aclosing(events):
                async for event in events:
                    self.log.append(event)
                    if event.event == dies_after:
                        break
        except Parked as parked:
            return parked
        return None

    def names(self) -> list[str]:
        return [event.event for event in self.log]

    def result(self, call_id: str) -> ToolResult:
        (found,) = [e for e in self.log if isinstance(e, ToolResult) and e.call_id == call_id]
        return found
