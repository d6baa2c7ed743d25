"""An answer source for tests of the tools stage, without Redis and without a clock."""

import asyncio
from collections.abc import Collection

import orjson

from stagebus.shared.domain.call_results import CallLease, CallResult
from stagebus.shared.domain.decisions import EXPIRED, Decision
from stagebus.shared.store.parking import Seen
from stagebus.worker.stages.answer_source import AnswerSnapshot


class FakeApprover:
    """Holds the decisions and the results that a test makes."""

    def __init__(self, **decisions: Decision) -> None:
        self.decisions = decisions
        self.results: dict[str, CallResult] = {}
        self.leases: dict[str, CallLease] = {}
        self.now_ms = 1000
        self.changed = asyncio.Event()

    def decide(self, call_id: str, decision: Decision) -> None:
        self.decisions[call_id] = decision
        self.changed.set()

    def answer(self, call_id: str, content: str) -> None:
        self.results.setdefault(call_id, CallResult(content=content))
        self.changed.set()

    async def read(self, call_ids: Collection[str] = ()) -> AnswerSnapshot:
        results = {call_id: self.results[call_id] for call_id in call_ids if call_id in self.results}
        leases = {call_id: self.leases[call_id] for call_id in call_ids if call_id in self.leases}
        return AnswerSnapshot(dict(self.decisions), results, leases, self.now_ms, self.seen())

    def seen(self) -> Seen:
        return Seen(len(self.decisions) + len(self.results), len(orjson.dumps(sorted(self.decisions))))

    async def expire(self, call_id: str) -> Decision:
        return self.decisions.setdefault(call_id, EXPIRED)

    async def deliver(self, call_id: str, result: CallResult) -> CallResult:
        return self.results.setdefault(call_id, result)

    async def wait_for_change(self) -> None:
        await self.changed.wait()
        self.changed.clear()
