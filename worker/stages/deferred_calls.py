"""The calls of a tools stage that wait for a result from outside: of a client, or of what a deferred tool has started.

Each is announced once, by an event. Its result arrives in Redis, or the call expires, or the only client that may run it
goes away; both give it an error. Whoever is first counts, the tool's own return value included.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from stagebus.shared.domain import call_results
from stagebus.shared.domain.call_results import CallLease, CallResult
from stagebus.shared.domain.events import CallDeferred, ToolResult
from stagebus.shared.runtime.call_tokens import CallToken
from stagebus.worker.stages.answer_source import AnswerSnapshot, AnswerSource
from stagebus.worker.stages.call_plan import OUTCOME_UNKNOWN, Checkpoints, PlannedCall
from stagebus.worker.tools.tool_results import Deferred, RemoteTask, ToolReply

NO_TOKEN: Final = CallToken("", "")
_UNKNOWN: Final = ToolReply(OUTCOME_UNKNOWN, is_error=True)


class CallTerms(NamedTuple):
    """The terms under which the calls of one round wait.

    Attributes:
        ref: the id of the event that completed the model's answer with the calls.
        wait_s: how long a call waits that says nothing about it.
        wait_max_s: the longest wait.
        token_of: returns the token of a call, by its id.
        result_url_of: returns the URL for the result of a call, by its id and its token.
    """

    ref: str = "0-0"
    wait_s: float = 60.0
    wait_max_s: float = call_results.EXPIRES_IN_MAX_S
    token_of: Callable[[str], CallToken] = lambda _: NO_TOKEN
    result_url_of: Callable[[str, str], str] = lambda _id, _token: ""


class WaitingResult(NamedTuple):
    """A call that begins to wait; `deferred` is what its tool returned, None for a call that says nothing about its wait."""

    planned: PlannedCall
    deferred: Deferred | None = None


class DeferredCalls:
    """Holds the calls of one stage that wait for a result."""

    def __init__(self, stage_id: str, source: AnswerSource, checkpoints: Checkpoints, terms: CallTerms) -> None:
        """`checkpoints` has the calls that earlier attempts announced and started."""
        self._stage_id = stage_id
        self._source = source
        self._expires_at = dict(checkpoints.deferred)
        self._started_before = checkpoints.started
        self._open: dict[str, PlannedCall] = {}
        self._leases: Mapping[str, CallLease] = {}
        self.terms = terms

    @property
    def open_ids(self) -> Collection[str]:
        """The ids of the calls that wait."""
        return self._open.keys()

    def must_wait(self, planned: PlannedCall) -> bool:
        """Returns whether the call waits without running here: a client runs it, or its tool may have started it already."""
        tool = planned.tool
        if tool is None:
            return False
        if planned.request.id in self._expires_at:  # even if its tool would give the result at once by now
            return True
        is_spent = tool.is_deferred and self._is_spent(planned) and not tool.may_be_task
        return tool.client is not None or is_spent

    async def open(self, calls: Sequence[WaitingResult]) -> list[CallDeferred]:
        """Makes these calls wait; returns an event for each that has none in the log."""
        self._open |= {waiting.planned.request.id: waiting.planned for waiting in calls}
        new = [waiting for waiting in calls if waiting.planned.request.id not in self._expires_at]
        now_ms = (await self._source.read()).now_ms if new else 0
        return [self._announce(waiting, now_ms) for waiting in new]

    async def take_results(self, snapshot: AnswerSnapshot) -> list[ToolResult]:
        """Returns an event for each call whose result came or that expired; those calls wait no longer."""
        self._leases = snapshot.leases
        found = {call_id: snapshot.results[call_id] for call_id in self._open if call_id in snapshot.results}
        for call_id in self._open.keys() - found.keys():
            lease = snapshot.leases.get(call_id)
            if self._expires_at[call_id] <= snapshot.now_ms:
                found[call_id] = await self._source.deliver(call_id, call_results.EXPIRED)
            elif lease is not None and lease.is_once and lease.until_ms <= snapshot.now_ms:
                found[call_id] = await self._source.deliver(call_id, call_results.LAPSED)
        return [self._result_event(self._open.pop(call_id), result) for call_id, result in found.items()]

    def expiries(self) -> list[int]:
        """Returns when something must be done for each call that waits, Unix ms by Redis's clock."""
        lapses = [lease.until_ms for call_id, lease in self._leases.items() if lease.is_once and call_id in self._open]
        return [*(self._expires_at[call_id] for call_id in self._open), *lapses]

    async def find_early(self, call_id: str) -> ToolReply | None:
        """Returns the result of a call that an earlier attempt started, if it is there already."""
        if call_id not in self._started_before:
            return None
        early = (await self._source.read([call_id])).results.get(call_id)
        return None if early is None else ToolReply(early.content, early.is_error)

    async def resume_task(self, planned: PlannedCall) -> ToolReply | Deferred | None:
        """Returns what comes of a call that an earlier attempt started as a task; None if it may start now.

        If its task is not known, a call that may run only once has an unknown outcome: no one can ask for its result.
        """
        if planned.request.id not in self._started_before:
            return None
        if (found := await self._source.find_task(planned.request.id)) is not None:
            return found
        return await self.settle(planned.request.id, _UNKNOWN) if self._is_spent(planned) else None

    async def keep_task(self, call_id: str, task: RemoteTask) -> None:
        """Stores the task that a call has become."""
        wait_s = min(task.expires_in or self.terms.wait_s, self.terms.wait_max_s)
        await self._source.keep_task(call_id, task, wait_s)

    async def settle(self, call_id: str, reply: ToolReply) -> ToolReply:
        """Returns the result of a call whose tool has returned a value: that value, unless another result was first."""
        first = await self._source.deliver(call_id, CallResult(content=reply.content, is_error=reply.is_error))
        return ToolReply(first.content, first.is_error)

    def _is_spent(self, planned: PlannedCall) -> bool:
        assert planned.tool is not None, "a refused call does not start"
        return planned.request.id in self._started_before and not planned.tool.idempotent

    def _announce(self, waiting: WaitingResult, now_ms: int) -> CallDeferred:
        call, tool = waiting.planned.request, waiting.planned.tool
        assert tool is not None, "a refused call does not wait"
        client, asked_s = tool.client, waiting.deferred and waiting.deferred.expires_in
        wait_s = (client.expires_in_s if client else asked_s) or self.terms.wait_s
        expires_at = now_ms + round(1000 * min(wait_s, self.terms.wait_max_s))
        self._expires_at[call.id] = expires_at
        return CallDeferred(
            stage_id=self._stage_id,
            call_id=call.id,
            name=call.name,
            arguments=call.arguments,
            kind="client" if client else "deferred",
            expires_at=expires_at,
            ref=self.terms.ref,
            once=client is not None and client.once,
            token_id=None if client or tool.may_be_task else self.terms.token_of(call.id).token_id or None,
        )

    def _result_event(self, planned: PlannedCall, result: CallResult) -> ToolResult:
        return ToolResult(
            stage_id=self._stage_id,
            call_id=planned.request.id,
            name=planned.request.name,
            content=result.content,
            is_error=result.is_error,
        )
