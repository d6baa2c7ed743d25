"""The runner against a real server: every run ends, whatever its record and its log hold."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.events import RetryScheduled, StageCompleted
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import ModelRejected, ModelUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.store import run_result, run_store
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.provider_limiter import TokenReservation
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources import SourcedTool
from stagebus.worker.tools.tool_context import ToolContext
from tests.support import runs_by_hand
from tests.support.redis_calls import subscriber_count
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel, providers_of
from tests.support.waiting import until, until_equal

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [], "timeout_s": 60}
ANSWER = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}


PROVIDERS = providers_of({"a": ["a", {"name": "m", "fallbacks": ["b", "c"]}], "b": ["b"], "c": ["c"]})


@pytest.fixture
def model() -> ScriptedModel:
    """Says hello, as often as it is asked."""
    return ScriptedModel(default=[ANSWER], providers=PROVIDERS)


async def names(redis: Redis, run_id: str) -> list[str]:
    page = await log_reader.read_page(redis, run_id, START, 1000)
    return [event.event.decode() for event in page.events]


async def test_runner_works_on_a_run_to_its_end(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await queued(redis, settings, REQUEST)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(Disposition.FINISH)
    assert await names(redis, run_id) == [
        "run_queued", "run_started", "stage_started", "tool_completion_chunk", "stage_completed", "done",
    ]  # fmt: skip
    assert (await run_store.get_run(redis, run_id)).status is RunStatus.SUCCEEDED
    assert await redis.zscore(keys.ACTIVE, run_id) is None


async def test_events_have_times_and_stages_have_durations(redis: Redis, settings: Settings, runner: Runner) -> None:
    began_at = wall_ms()
    run_id = await queued(redis, settings, REQUEST)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    took_ms = wall_ms() - began_at
    payloads = {
        e.event.decode(): orjson.loads(e.data) for e in (await log_reader.read_page(redis, run_id, START, 100)).events
    }

    assert "at" not in payloads.pop("tool_completion_chunk")
    times = [payload["at"] for payload in payloads.values()]
    assert list(payloads) == ["run_queued", "run_started", "stage_started", "stage_completed", "done"]
    assert [began_at, *times, began_at + took_ms] == sorted([began_at, *times, began_at + took_ms])
    assert 0 <= payloads["stage_completed"]["duration_ms"] <= took_ms + 1


@pytest.mark.parametrize("added", [b"", b',"at":1,"from_the_future":{"n":1}'], ids=["older", "newer"])
async def test_run_of_another_version_continues(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel, added: bytes
) -> None:
    """During an upgrade: a newer gateway created the run, or an older or newer worker ran its first stage."""
    run_id = await queued(redis, settings, {**REQUEST, **({"from_the_future": 1} if added else {})})
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    started = b'{"stage_id":"extraction","attempt":1%b}' % added
    completed = b'{"stage_id":"extraction","result":{"text":"hello","tool_calls":[]}%b}' % added
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
        entries=[
            run_scripts.LogEntry("extraction", "stage_started", started),
            run_scripts.LogEntry("extraction", "stage_completed", completed),
        ],
    )  # fmt: skip
    await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert (await names(redis, run_id))[-1] == "done"
    assert model.asked_providers == []


class LateSource:
    """Offers its tools when the test calls `give`."""

    name = "late"

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self._tools: list[SourcedTool] = []

    def give(self, *names: str) -> None:
        self._tools = [SourcedTool(name, "d", {"type": "object"}, call=_never) for name in names]
        self.is_known = True
        self.on_change()

    def tools(self) -> list[SourcedTool]:
        return self._tools

    async def start(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def _never(_arguments: dict[str, Any], _context: ToolContext) -> None:
    raise AssertionError("the model calls nothing")


@pytest.fixture
async def late(runner: Runner, settings: Settings) -> AsyncIterator[LateSource]:
    """The source of the runner's tools, unreachable since the worker started."""
    late = LateSource()
    registry = ToolRegistry([], settings, sources=[late])
    await registry.start()
    runner._tools = registry
    yield late
    await registry.aclose()


async def begun(redis: Redis, run_id: str) -> None:
    await until_equal(lambda: names(redis, run_id), ["run_queued", "run_started"])


@pytest.mark.parametrize(("given", "end"), [(["late__one"], "done"), (["late__other"], "error"), ([], "error")])
async def test_run_waits_for_a_tool_source_that_was_never_reachable(
    redis: Redis, settings: Settings, runner: Runner, late: LateSource, given: list[str], end: str
) -> None:
    """Another worker had the tool, so the gateway accepted the run. A tool that the source does not have is unknown."""
    run_id = await queued(redis, settings, {**REQUEST, "tools": ["late__one"]})
    running = asyncio.create_task(runner.run(run_id, "token"))
    await begun(redis, run_id)
    late.give(*given)
    await asyncio.wait_for(running, 10)
    run = await run_store.get_run(redis, run_id)

    assert (await names(redis, run_id))[-1] == end
    assert run.error is None or run.error["code"] == "unknown_tools"


@pytest.mark.parametrize("stop", ["a drain", "a cancel", "nothing"])
async def test_wait_for_a_tool_source_ends(
    redis: Redis, settings: Settings, runner: Runner, late: LateSource, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    monkeypatch.setattr("stagebus.worker.tools.registry.SOURCES_MAX_S", 60 if stop != "nothing" else 0.01)
    run_id = await queued(redis, settings, {**REQUEST, "tools": ["late__one"]})
    running = asyncio.create_task(runner.run(run_id, "token"))
    if stop != "nothing":
        await begun(redis, run_id)
    if stop == "a drain":
        runner.begin_drain()
    elif stop == "a cancel":
        await run_scripts.cancel(redis, run_id)
    outcome = await asyncio.wait_for(running, 10)

    assert outcome.disposition is (Disposition.RELEASE if stop == "a drain" else Disposition.FINISH)
    end = {"a drain": "run_started", "a cancel": "cancel", "nothing": "error"}[stop]
    assert (await names(redis, run_id))[-1] == end


async def test_runner_leaves_an_ended_run_unchanged(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await queued(redis, settings, REQUEST)
    await run_store.cancel_run(redis, settings, run_id)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(Disposition.FINISH)
    assert await names(redis, run_id) == ["run_queued", "cancel"]


async def test_cancel_reaches_a_silent_model(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    model.may_answer.clear()
    run_id = await queued(redis, settings, REQUEST)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait_for(model.is_asked.wait(), 10)
    assert await run_scripts.cancel(redis, run_id)
    await asyncio.wait_for(running, 10)

    assert (await names(redis, run_id))[-1] == "cancel"
    assert await subscriber_count(redis, keys.control(run_id)) == 0, "the run's channel was unsubscribed"


async def test_drained_run_is_given_back_with_its_events_flushed(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    model.may_answer.clear()
    run_id = await queued(redis, settings, REQUEST)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait_for(model.is_asked.wait(), 10)
    runner.give_back_now()
    outcome = await asyncio.wait_for(running, 10)
    run = await run_store.get_run(redis, run_id)

    assert outcome == Outcome(Disposition.RELEASE, run.attempt)
    assert run.status is RunStatus.RUNNING
    assert (await names(redis, run_id))[-1] == "stage_started"


@pytest.mark.parametrize(
    "request_",
    [{**REQUEST, "timeout_s": "soon"}, {"model": "m"}],
    ids=["no number", "half of it missing"],
)
async def test_run_with_an_unreadable_request_ends(
    redis: Redis, settings: Settings, runner: Runner, request_: dict[str, Any]
) -> None:
    run_id = await queued(redis, settings, request_)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(Disposition.FINISH)
    assert (await names(redis, run_id))[-1] == "error"


async def test_run_with_an_unreadable_log_ends(redis: Redis, settings: Settings, runner: Runner) -> None:
    run_id = await queued(redis, settings, REQUEST)
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    data = b'{"stage_id":"extraction","result":"of another kind"}'
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
        entries=[run_scripts.LogEntry("extraction", "stage_completed", data)],
    )  # fmt: skip

    assert await asyncio.wait_for(runner.run(run_id, "token"), 10) == Outcome(Disposition.FINISH)
    assert (await names(redis, run_id))[-1] == "error"


ENDS = {"done", "error", "cancel"}


async def spoil(redis: Redis, run_id: str, part: str, *, is_deleted: bool) -> None:
    key = keys.stages(run_id) if part == "stages" else keys.stage_stream(run_id, part)
    await redis.delete(key)
    if not is_deleted:
        await redis.set(key, "of another type", ex=600)


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "replaced"])
@pytest.mark.parametrize("part", ["extraction", "run", "stages"])
async def test_run_with_a_damaged_log_has_one_end(
    redis: Redis, settings: Settings, runner: Runner, monkeypatch: pytest.MonkeyPatch, part: str, is_deleted: bool
) -> None:
    monkeypatch.setattr("stagebus.worker.execution.runner.RECLAIM_PAUSE_S", 0.01)
    run_id = await queued(redis, settings, REQUEST)
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
        entries=[run_scripts.LogEntry("extraction", "stage_started", b'{"stage_id":"extraction","attempt":1}')],
    )  # fmt: skip
    await spoil(redis, run_id, part, is_deleted=is_deleted)

    assert await asyncio.wait_for(runner.run(run_id, "token"), 20) == Outcome(Disposition.FINISH)
    told = await names(redis, run_id)
    assert [name for name in told if name in ENDS] == told[-1:]
    assert (await run_store.get_run(redis, run_id)).is_terminal
    assert await redis.zscore(keys.ACTIVE, run_id) is None


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "replaced"])
@pytest.mark.parametrize("part", ["extraction", "run", "stages"])
async def test_run_with_a_log_damaged_at_work_has_one_end_and_nothing_twice(
    redis: Redis,
    settings: Settings,
    runner: Runner,
    model: ScriptedModel,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    is_deleted: bool,
) -> None:
    monkeypatch.setattr("stagebus.worker.execution.runner.RECLAIM_PAUSE_S", 0.01)
    model.may_answer.clear()
    run_id = await queued(redis, settings, REQUEST)
    running = asyncio.create_task(runner.run(run_id, "token"))

    async def is_started() -> bool:
        return "stage_started" in await names(redis, run_id)

    await until(is_started)
    await spoil(redis, run_id, part, is_deleted=is_deleted)
    model.may_answer.set()
    await asyncio.wait_for(running, 20)
    events = (await log_reader.read_page(redis, run_id, START, 1000)).events

    assert [e.event for e in events if e.is_terminal] == [events[-1].event]
    assert len({e.event_id.sequence for e in events}) == len(events)
    assert (await run_store.get_run(redis, run_id)).is_terminal


async def test_fallbacks_are_asked_in_order_and_announced(redis, settings, runner, model) -> None:
    model.down = {"a", "b"}
    run_id = await queued(redis, settings, REQUEST)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    events = (await log_reader.read_page(redis, run_id, START, 1000)).events
    retries = [RetryScheduled.model_validate_json(e.data) for e in events if e.event == b"retry_scheduled"]
    (completed,) = [StageCompleted.model_validate_json(e.data) for e in events if e.event == b"stage_completed"]

    assert model.asked_providers == ["a", "b", "c"]
    assert [(retry.retry, retry.model, retry.backoff_s) for retry in retries] == [(1, "b", 0), (2, "c", 0)]
    assert completed.result["provider"] == "c"


async def test_model_that_was_just_down_is_not_asked_first_by_the_next_run(redis, settings, runner, model) -> None:
    model.down = {"a"}
    for _ in range(2):
        await asyncio.wait_for(runner.run(await queued(redis, settings, REQUEST), "token"), 10)

    assert model.asked_providers == ["a", "b", "b"]


async def test_fallback_is_not_used_after_the_first_token(redis, settings, runner, model) -> None:
    """The stage restarts with the requested model."""
    model.answers = [[{"choices": [{"index": 0, "delta": {"content": "hel"}}]}, ModelUnavailable("it was cut")]]
    run_id = await queued(redis, settings, REQUEST)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert model.asked_providers == ["a", "a"]
    assert "stage_restarted" in await names(redis, run_id)


async def test_stage_may_have_its_own_model(redis, settings, runner, model) -> None:
    run_id = await queued(redis, settings, {**REQUEST, "model": ["b", "c"]})
    await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert model.asked_providers == ["b"]


async def test_record_has_the_finish_reason_of_the_answer(redis, settings, runner, model) -> None:
    """The list of runs shows it without reading logs. It is that of `result` in `GET /runs/{id}`."""
    cut = {"choices": [{"index": 0, "delta": {"content": "hel"}, "finish_reason": "length"}]}
    refused = {"choices": [{"index": 0, "delta": {"refusal": "I will not."}, "finish_reason": "stop"}]}
    broken = {"choices": [{"index": 0, "delta": {"content": "hel"}}]}
    expected = ["length", "refusal", "model_rejected"]
    model.answers = [[cut], [refused], [broken, ModelRejected("no")]]
    run_ids = [await queued(redis, settings, REQUEST) for _ in expected]
    for run_id in run_ids:
        await asyncio.wait_for(runner.run(run_id, "token"), 10)
    runs = [await run_store.get_run(redis, run_id) for run_id in run_ids]
    results = [await run_result.read_result(redis, run, await run_store.read_stages(redis, run.run_id)) for run in runs]

    assert [run.finish_reason for run in runs] == [result.finish_reason for result in results] == expected


async def test_record_of_a_run_that_no_worker_held_at_its_end_has_a_finish_reason(redis, settings) -> None:
    run = await runs_by_hand.start(redis)
    assert await cancelled(redis, settings, run.run_id) is None, "no model stage has begun"
    run = await runs_by_hand.start(redis)
    await run.say("hel")
    assert await cancelled(redis, settings, run.run_id) == "cancelled"


async def cancelled(redis: Redis, settings: Settings, run_id: str) -> str | None:
    await redis.hset(keys.run(run_id), "worker", "")
    await run_store.cancel_run(redis, settings, run_id)
    return (await run_store.get_run(redis, run_id)).finish_reason


async def test_run_with_an_unknown_model_ends(redis, settings, runner, model) -> None:
    run_id = await queued(redis, settings, {**REQUEST, "model": "nope"})
    await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert (await run_store.get_run(redis, run_id)).error["code"] == "unknown_model"


@pytest.mark.parametrize(("usage", "tokens"), [({"total_tokens": 12}, 12), (None, 500)], ids=["told", "estimated"])
async def test_token_reservation_is_settled_with_the_tokens_used(
    redis, settings, runner, model, monkeypatch, usage: dict | None, tokens: int
) -> None:
    spent = []

    @asynccontextmanager
    async def slot(*_: object) -> AsyncIterator[TokenReservation]:
        spending = TokenReservation(500)
        yield spending
        spent.append(spending.tokens)

    monkeypatch.setattr(model, "reserve", slot)
    monkeypatch.setitem(ANSWER, "usage", usage)
    run_id = await queued(redis, settings, REQUEST)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)

    assert spent == [tokens]


async def test_drain_gives_back_a_run_that_waits_for_a_provider_slot(
    redis, settings, runner, model, monkeypatch
) -> None:
    is_waiting = asyncio.Event()

    @asynccontextmanager
    async def full(*_: object) -> AsyncIterator[None]:
        is_waiting.set()
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(model, "reserve", full)
    run_id = await queued(redis, settings, REQUEST)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait_for(is_waiting.wait(), 10)
    runner.begin_drain()

    assert (await asyncio.wait_for(running, 10)).disposition is Disposition.RELEASE
    assert model.asked_providers == []
    assert (await run_store.get_run(redis, run_id)).tries == 0


async def test_run_that_redis_refuses_is_claimed_again_with_pauses(
    redis: Redis, settings: Settings, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the Redis user lost a permission. Each claim costs another request to the provider."""
    claims = 0
    claim = run_scripts.claim

    async def count(*args: Any, **named: Any) -> run_scripts.Claim | None:
        nonlocal claims
        claims += 1
        return await claim(*args, **named)

    async def refuse(*_: Any, **__: Any) -> run_scripts.AppendResult:
        raise ResponseError("NOPERM this user has no permissions")

    monkeypatch.setattr(run_scripts, "claim", count)
    monkeypatch.setattr(run_scripts, "append", refuse)
    run_id = await queued(redis, settings, REQUEST)
    running = asyncio.create_task(runner.run(run_id, "token"))
    await asyncio.wait({running}, timeout=0.8)
    await cancel_and_wait(running)

    assert 2 <= claims <= 4
