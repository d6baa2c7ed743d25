"""Asks tool servers for the state of the tasks that calls have become, and gives the calls their results.

The runs of these calls are parked: a look needs no slot and leaves no event. Every worker looks; leases in Redis see to it
that each look is made by one of them. Work that nothing waits for any more is cancelled at its server: the run has ended,
or its call has another result or has expired.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.polled_task import FAILED_LOOK_S, PolledTask
from stagebus.shared.errors import RunEnded
from stagebus.shared.observability.redaction import redact
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import parking, task_polls
from stagebus.worker.tools.sources import TaskSource
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_results import ToolReply, cut

logger = logging.getLogger(__name__)

# Of one source at once. A look is a request or two.
LOOKS_MAX: Final = 16
# Tasks that other workers begin are found at the latest after this time. A look into Redis is one small script.
IDLE_S: Final = 2.0
PAUSE_MIN_S: Final = 0.05
LOOK_MAX_S: Final = 0.9 * task_polls.LEASE_S
STOP_GRACE_S: Final = 2.0


class TaskPoller:
    """Looks at the tasks of this worker's tool sources until it is stopped."""

    def __init__(self, redis: Redis, settings: Settings, worker: str, sources: Sequence[TaskSource]) -> None:
        self._redis = redis
        self._settings = settings
        self._worker = worker
        self._wakes = {source.name: asyncio.Event() for source in sources}
        self._sources = sources
        self._looks: dict[str, set[asyncio.Task[None]]] = {source.name: set() for source in sources}
        self._failing: set[str] = set()  # sources that could not be asked when they were asked last
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts to work."""
        self._tasks = [asyncio.create_task(self._run(source)) for source in self._sources]

    async def stop(self) -> None:
        """Lets the looks under way end, for a moment. Other workers repeat the rest when their leases end."""
        await cancel_and_wait(*self._tasks)
        looks = [look for looks in self._looks.values() for look in looks]
        if looks:
            await asyncio.wait(looks, timeout=STOP_GRACE_S)
        await cancel_and_wait(*looks)

    async def end_tasks(self, run_id: str) -> None:
        """Makes workers cancel the tasks of a run that has ended at once. A failure only delays that to the next looks."""
        if not any(source.offers_tasks for source in self._sources):
            return
        try:
            for task in await task_polls.make_due(self._redis, run_id):
                if (wake := self._wakes.get(task.source)) is not None:
                    wake.set()
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, f"run {run_id}: its tasks", exc)

    async def _run(self, source: TaskSource) -> None:
        wake = self._wakes[source.name]
        while True:
            pause_s = IDLE_S
            try:
                if source.offers_tasks:
                    pause_s = await self._step(source)
            except REDIS_AWAY as exc:
                OUTAGE.report_failure(logger, f"the tasks of {source.name}", exc)
            except Exception:
                # If this loop ended, the runs that wait for these tasks would wait until they expire.
                logger.exception("the tasks of %s cannot be polled; trying again", source.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await wake.wait()
            wake.clear()

    async def _step(self, source: TaskSource) -> float:
        """Starts the looks that are due; returns the seconds until the next ones may be."""
        looks = self._looks[source.name]
        free = LOOKS_MAX - len(looks)
        if not free:
            return PAUSE_MIN_S
        due = await task_polls.acquire(self._redis, source.name, self._worker, free)
        for task in due.tasks:
            look = asyncio.create_task(self._look_safely(source, task))
            looks.add(look)
            look.add_done_callback(looks.discard)
        return IDLE_S if due.next_s is None else min(max(due.next_s, PAUSE_MIN_S), IDLE_S)

    async def _look_safely(self, source: TaskSource, task: PolledTask) -> None:
        try:
            async with asyncio.timeout(LOOK_MAX_S):
                await self._look(source, task)
        except TimeoutError:
            logger.warning("run %s: %s did not answer about its task; asking again", task.run_id, source.name)
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, f"run {task.run_id}: its task at {source.name}", exc)
        except Exception:
            # The lease of the look ends, and a worker looks again.
            logger.exception("run %s: its task at %s cannot be looked at", task.run_id, source.name)

    async def _look(self, source: TaskSource, task: PolledTask) -> None:
        state = await task_polls.read_state(self._redis, task)
        try:
            if not state.is_wanted:
                if not task.is_given_up(state.now_ms):
                    await source.cancel_task(task.task_id)
                await task_polls.drop(self._redis, task)
                return
            found = await source.look_at_task(task.task_id)
        except ToolError as exc:
            if source.name not in self._failing:
                logger.warning("tasks of %s cannot be asked for: %s; trying again until they expire", source.name, exc)
            self._failing.add(source.name)
            next_ms = task.next_look_at(state.now_ms, None, FAILED_LOOK_S)
            await task_polls.postpone(self._redis, task, next_ms)
            return
        self._failing.discard(source.name)
        if found.reply is None:
            await task_polls.postpone(self._redis, task, task.next_look_at(state.now_ms, found.poll_s))
            return
        with suppress(RunEnded):
            await self._deliver(task, source, found.reply)
        if found.must_cancel:
            await task_polls.postpone(self._redis, task, state.now_ms)  # the next look cancels it: it has a result now
        else:
            await task_polls.drop(self._redis, task)

    async def _deliver(self, task: PolledTask, source: TaskSource, reply: ToolReply) -> None:
        max_bytes = source.result_max_bytes or self._settings.tool_result_max_bytes
        # As of every call: an error's text may contain the key of a service.
        content = redact(reply.content) if reply.is_error else reply.content
        result = CallResult(content=cut(content, max_bytes), is_error=reply.is_error)
        await parking.deliver(self._redis, task.run_id, task.ref, task.call_id, result)
