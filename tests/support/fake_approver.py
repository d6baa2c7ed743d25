"""A decision source for tests of the tools stage, without Redis and without a clock."""

import asyncio

import orjson

from stagebus.shared.domain.decisions import EXPIRED, Decision
from stagebus.worker.stages.approval_gate import DecisionSnapshot


class FakeApprover:
    """Holds the decisions that a test makes."""

    def __init__(self, **decisions: Decision) -> None:
        self.decisions = decisions
        self.now_ms = 1000
        self._decided = asyncio.Event()

    def decide(self, call_id: str, decision: Decision) -> None:
        self.decisions[call_id] = decision
        self._decided.set()

    async def read(self) -> DecisionSnapshot:
        return DecisionSnapshot(dict(self.decisions), self.now_ms, orjson.dumps(sorted(self.decisions)))

    async def expire(self, call_id: str) -> Decision:
        return self.decisions.setdefault(call_id, EXPIRED)

    async def wait_for_change(self) -> None:
        await self._decided.wait()
        self._decided.clear()
