"""Runs whose calls have become tasks of a tool server, with the runner, the poller and their scripts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import call_results
from stagebus.shared.domain.polled_task import PolledTask
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import read_time_ms
from stagebus.shared.store import run_store, task_polls, waiting_calls
from stagebus.worker.execution.outcome import Disposition
from stagebus.worker.execution.runner import Runner
from stagebus.worker.execution.task_poller import TaskPoller
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.stages.call_plan import OUTCOME_UNKNOWN
from stagebus.worker.stages.deferred_calls import DeferredCalls
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources import SourcedTool, TaskLook
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import RemoteTask, ToolReply
from tests.support.runs_by_hand import queued
from tests.support.waiting import until
from tests.support.waiting_runs import REQUEST, CallingModel, is_due, park, resume, text


class FakeTasks:
    """A tool source whose one tool becomes a task."""

    name = "fake"
    is_known = offers_tasks = True
    result_max_bytes = 20
    on_change: Callable[[], None]

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.looks: list[TaskLook | Exception] = []  # the answers to come; the last one stays
        self.looked: list[str] = []
        self.is_idempotent = False
        self.may_be_task = True
        self.hangs = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def tools(self) -> list[SourcedTool]:
        return [
            SourcedTool(
                "job", "A job.", {"type": "object"}, self._call, idempotent=self.is_idempotent, may_be_task=True
            )
        ]

    async def _call(self, _arguments: dict[str, Any], _context: ToolContext) -> RemoteTask:
        self.begun.append(f"t{len(self.begun)}")
        if self.hangs:
            await asyncio.Event().wait()
        return RemoteTask(source="fake", task_id=self.begun[-1], poll_s=1, expires_in=60)

    async def look_at_task(self, task_id: str) -> TaskLook:
        self.looked.append(task_id)
        await self.may_answer.wait()
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    async def cancel_task(self, task_id: str) -> None:
        self.cancelled.append(task_id)

    async def start(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.fixture
def model() -> ModelClient:
    return CallingModel()


@pytest.fixture
async def source(runner: Runner, settings: Settings) -> FakeTasks:
    fake = FakeTasks()
    await use(runner, settings, fake)
    return fake


@pytest.fixture
async def poller(redis: Redis, settings: Settings, runner: Runner, source: FakeTasks) -> AsyncIterator[TaskPoller]:
    poller = TaskPoller(redis, settings, "w", [source])
    runner._tasks = poller
    yield poller
    await poller.stop()


async def use(runner: Runner, settings: Settings, source: FakeTasks) -> None:
    runner._tools = ToolRegistry([], settings, sources=[source])
    await runner._tools.start()


async def looks_of(redis: Redis) -> list[tuple[PolledTask, int]]:
    found = await redis.zrange(keys.polled_tasks("fake"), 0, -1, withscores=True)
    return [(PolledTask.decode(text), int(score)) for text, score in found]


async def look(redis: Redis, poller: TaskPoller, source: FakeTasks) -> None:
    """Lets the poller look at every task, whenever that is due."""
    for task, _ in await looks_of(redis):
        await task_polls.postpone(redis, task, 0)
    await poller._step(source)
    await asyncio.gather(*poller._looks["fake"])


async def test_run_waits_without_a_worker_until_its_task_has_ended(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller
) -> None:
    run_id = await park(redis, settings, runner, tools=["job"])
    ((task, first_ms),) = await looks_of(redis)
    call = await waiting_calls.find(redis, run_id, "c", None)
    assert (task.task_id, first_ms - task.began_at) == ("t0", 1000)
    assert (call.kind, call.token_id, abs(call.expires_at - task.expires_at) < 5000) == ("deferred", None, True)

    source.looks = [TaskLook(poll_s=7), ToolError("away"), TaskLook(ToolReply("a very long result of a task"))]
    log_end = (await run_store.get_run(redis, run_id)).last_id
    for interval_ms in (7000, 5000):
        before_ms = await read_time_ms(redis)
        await look(redis, poller, source)
        ((_, next_ms),) = await looks_of(redis)
        assert before_ms <= next_ms - interval_ms <= await read_time_ms(redis)
    run = await run_store.get_run(redis, run_id)
    assert (run.status, run.last_id, await is_due(redis, run_id)) == (RunStatus.PARKED, log_end, False)

    await look(redis, poller, source)
    assert await looks_of(redis) == []
    assert await is_due(redis, run_id)
    assert (await resume(redis, settings, runner, run_id)).disposition is Disposition.FINISH
    assert (await text(redis, run_id)).startswith("a ver")
    assert (source.begun, source.cancelled) == (["t0"], [])


async def die_in(redis: Redis, settings: Settings, runner: Runner, has_died: Callable[[], Any]) -> str:
    """Starts a run, and stops its worker's work without a trace at some moment."""
    run_id = await queued(redis, settings, {**REQUEST, "tools": ["job"]})
    working = asyncio.create_task(runner.run(run_id, "token"))
    await until(has_died)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return run_id


@pytest.mark.parametrize("is_idempotent", [True, False])
async def test_task_of_a_dead_worker_is_not_begun_again(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller,
    monkeypatch: pytest.MonkeyPatch, is_idempotent: bool,
) -> None:  # fmt: skip
    """The worker dies after it has stored the task, before the log says that the call waits."""
    source.is_idempotent = is_idempotent
    await use(runner, settings, source)
    really_open, opened = DeferredCalls.open, asyncio.Event()

    async def open_never(_self: DeferredCalls, calls: list[object]) -> list[object]:
        if calls:
            opened.set()
            await asyncio.Event().wait()
        return []

    monkeypatch.setattr(DeferredCalls, "open", open_never)
    run_id = await die_in(redis, settings, runner, opened.is_set)
    monkeypatch.setattr(DeferredCalls, "open", really_open)
    outcome = await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert outcome.disposition is Disposition.PARK
    assert source.begun == ["t0"]
    source.looks = [TaskLook(ToolReply("done"))]
    await look(redis, poller, source)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    assert await text(redis, run_id) == "done"


@pytest.mark.parametrize("is_idempotent", [True, False])
async def test_result_counts_although_the_server_offers_no_tasks_any_more(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, is_idempotent: bool
) -> None:
    """The log says that the call waits; it is neither begun again nor given up."""
    run_id = await park(redis, settings, runner, tools=["job"])
    source.may_be_task, source.is_idempotent = False, is_idempotent
    await use(runner, settings, source)
    call = await waiting_calls.find(redis, run_id, "c", None)
    await waiting_calls.give_result(redis, run_id, call.ref, "c", call_results.CallResult(content="late"))
    await resume(redis, settings, runner, run_id)

    assert await text(redis, run_id) == "late"
    assert source.begun == ["t0"]


async def test_outcome_is_unknown_if_the_worker_died_before_it_knew_the_task(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks
) -> None:
    """No one could ask for its result, so the call must not wait for it."""
    source.hangs = True
    run_id = await die_in(redis, settings, runner, lambda: source.begun)
    assert (await asyncio.wait_for(runner.run(run_id, "token"), 10)).disposition is Disposition.FINISH

    assert await text(redis, run_id) == OUTCOME_UNKNOWN
    assert source.begun == ["t0"]


async def test_cancel_of_a_parked_run_cancels_its_task(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller
) -> None:
    source.looks = [TaskLook(poll_s=3600)]
    run_id = await park(redis, settings, runner, tools=["job"])
    await look(redis, poller, source)  # the next one is an hour away
    poller.start()
    await run_store.cancel_run(redis, settings, run_id)
    assert await is_due(redis, run_id), "a worker has to see that it has ended"
    await resume(redis, settings, runner, run_id)

    await until(lambda: source.cancelled)
    assert source.cancelled == ["t0"]


async def test_stopping_worker_lets_a_look_end(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller
) -> None:
    """Otherwise its result would come a minute later, when the lease of the look has ended."""
    source.looks = [TaskLook(ToolReply("done"))]
    source.may_answer.clear()
    run_id = await park(redis, settings, runner, tools=["job"])
    looking = asyncio.create_task(look(redis, poller, source))
    await until(lambda: source.looked)
    stopping = asyncio.create_task(poller.stop())
    asyncio.get_running_loop().call_soon(source.may_answer.set)
    await stopping
    await looking

    assert await is_due(redis, run_id)


@pytest.mark.parametrize("how", ["result", "expiry", "deleted"])
async def test_task_that_nothing_waits_for_is_cancelled(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller, how: str
) -> None:
    run_id = await park(redis, settings, runner, tools=["job"])
    call = await waiting_calls.find(redis, run_id, "c", None)
    if how == "deleted":
        await redis.delete(*keys.all_of_run(run_id))
    else:
        result = call_results.EXPIRED if how == "expiry" else call_results.CallResult(content="by hand")
        await waiting_calls.give_result(redis, run_id, call.ref, "c", result)
    await look(redis, poller, source)

    assert source.cancelled == ["t0"]
    assert (await looks_of(redis), source.looked) == ([], [])


async def test_task_that_needs_an_answer_fails_and_is_cancelled(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, poller: TaskPoller
) -> None:
    run_id = await park(redis, settings, runner, tools=["job"])
    source.looks = [TaskLook(ToolReply("no one answers", is_error=True), must_cancel=True)]
    await look(redis, poller, source)
    await look(redis, poller, source)

    assert (source.cancelled, await looks_of(redis)) == (["t0"], [])
    assert await is_due(redis, run_id)


async def test_one_worker_looks_and_another_one_if_it_dies(
    redis: Redis, settings: Settings, runner: Runner, source: FakeTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    await park(redis, settings, runner, tools=["job"])
    ((task, _),) = await looks_of(redis)
    await task_polls.postpone(redis, task, await read_time_ms(redis))
    other = await task_polls.acquire(redis, "fake", "other", 16)
    assert other.tasks == [], "it is left to the worker with the session"
    assert 0 < other.next_s <= task_polls.GRACE_S
    own = await task_polls.acquire(redis, "fake", "w", 16)
    assert own.tasks == [task]
    assert (await task_polls.acquire(redis, "fake", "w", 16)).tasks == []

    monkeypatch.setattr(task_polls, "GRACE_S", 0)
    await task_polls.postpone(redis, task, 1)  # the lease of the look has ended
    assert (await task_polls.acquire(redis, "fake", "other", 16)).tasks == [task]
    assert 0 < await redis.ttl(keys.polled_tasks("fake")) <= task_polls.KEPT_S
