"""The calls of one round at work, side by side, and what comes of them in the order in which it comes."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import NamedTuple

from shared.events import Event, ToolProgress, ToolResult
from worker.stages.planning import PlannedCall
from worker.tools.context import ToolContext
from worker.tools.progress import CallProgress
from worker.tools.results import ToolReply


class Origin(NamedTuple):
    """Whose calls these are; what a tool may know of it."""

    run_id: str
    tenant: str
    attempt: int


async def run_calls(
    stage_id: str, planned: Sequence[PlannedCall], origin: Origin, timeout_s: float
) -> AsyncGenerator[Event, None]:
    """Run calls, and refuse those that are to be refused. Closing it cancels what still runs.

    Args:
        timeout_s: for all of them together; a call without a result by then gets an error result.

    Yields:
        Any number of `ToolProgress` and one `ToolResult` for each call.
    """
    # Bounded: of each call its end, and one note of progress at a time.
    inbox: asyncio.Queue[_CallAtWork] = asyncio.Queue()
    calls = [_CallAtWork(stage_id, call, origin, inbox) for call in planned]
    unfinished = set(calls)
    deadline = asyncio.get_running_loop().call_later(timeout_s, _cut, calls, timeout_s)
    try:
        while unfinished:
            call = await inbox.get()
            for event in call.tell():
                yield event
            if call.is_told:
                unfinished.discard(call)
    finally:
        deadline.cancel()
        for call in calls:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in calls), return_exceptions=True)


class _CallAtWork:
    """One call: its task, and what is yet to be told of it."""

    def __init__(
        self, stage_id: str, planned: PlannedCall, origin: Origin, inbox: "asyncio.Queue[_CallAtWork]"
    ) -> None:
        self._stage_id = stage_id
        self._planned = planned
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._progress = CallProgress(lambda _: inbox.put_nowait(self))
        self.is_told = False
        self.cut_words = ""  # what the model is told if the task was cancelled
        self.task = asyncio.create_task(self._run(origin))
        self.task.add_done_callback(lambda _: inbox.put_nowait(self))

    def tell(self) -> Iterator[Event]:
        """Yield what there is to tell by now: progress, and at the end the result, once."""
        if self.is_told:
            return
        self.is_told = self.task.done()
        said = self._progress.close() if self.is_told else self._progress.take()
        call = self._planned.request
        if said is not None:
            yield ToolProgress(stage_id=self._stage_id, call_id=call.id, message=said.message, fraction=said.fraction)
        if self.is_told:
            reply = ToolReply(self.cut_words, is_error=True) if self.task.cancelled() else self.task.result()
            yield ToolResult(
                stage_id=self._stage_id,
                call_id=call.id,
                name=call.name,
                content=reply.content,
                is_error=reply.is_error,
                duration_ms=round((self._loop.time() - self._began_at) * 1000),
            )

    async def _run(self, origin: Origin) -> ToolReply:
        call, tool = self._planned.request, self._planned.tool
        if tool is None:
            return ToolReply(self._planned.refusal, is_error=True)
        context = ToolContext(
            run_id=origin.run_id,
            call_id=call.id,
            tenant=origin.tenant,
            tool=call.name,
            attempt=origin.attempt,
            report=self._progress.report,
        )
        return await tool.call(call.arguments, context)


def _cut(calls: Sequence[_CallAtWork], timeout_s: float) -> None:
    for call in calls:
        call.cut_words = (
            f"no result came before the calls of this round reached their limit of {timeout_s:g} s together"
        )
        call.task.cancel()
