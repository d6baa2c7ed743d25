"""Messages that join a run while it works: where the model gets them, and that each is said once."""

import asyncio
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.threads import OnActive
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.store import run_store, thread_steering
from stagebus.worker.execution.runner import Runner
from tests.support import runs_by_hand, snapshots
from tests.support.scripted_model import HeldModel, ScriptedModel, providers_of
from tests.support.thread_runs import ThreadRuns, answer, user
from tests.support.waiting import until

STEER = {"on_active": OnActive.STEER}
ROUNDS = 12
SUM = '{"a": 2, "b": 3}'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def says(text: str, finish_reason: str | None = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


def calls() -> dict[str, Any]:
    requests = [{"index": 0, "id": "c", "function": {"name": "add", "arguments": SUM}}]
    return {"choices": [{"index": 0, "delta": {"tool_calls": requests}, "finish_reason": "tool_calls"}]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"tools": (f"{__name__}:add",)})


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(default=[says("yes")], providers=providers_of({"p": ["native"]}))


@pytest.fixture
def thread(redis: Redis, settings: Settings, runner: Runner) -> ThreadRuns:
    return ThreadRuns(redis, settings, runner)


def contents(model: ScriptedModel, request: int = -1) -> list[str | None]:
    return [message["content"] for message in model.bodies[request]["messages"]]


async def steered(thread: ThreadRuns, model: ScriptedModel, **request: Any) -> tuple[str, str]:
    """Works on a run that another one steers while its model writes its first answer; returns both."""
    model.may_answer.clear()
    run_id = await thread.post("a", tools=["add"], **request)
    working = asyncio.create_task(thread.work(run_id))
    await model.is_asked.wait()
    joining_id = await thread.post("no, b", thread=STEER)
    model.may_answer.set()
    await working
    return run_id, joining_id


@pytest.mark.parametrize(("max_rounds", "stage_id"), [(3, "extraction.2"), (1, "synthesis")])
async def test_message_joins_before_the_next_request_to_the_model(
    thread: ThreadRuns, model: ScriptedModel, max_rounds: int, stage_id: str
) -> None:
    model.answers = [[calls()], [says("B")]]
    run_id, joining_id = await steered(thread, model, max_rounds=max_rounds)

    assert contents(model) == ["a", None, "5", "no, b"]
    added = await thread.event(run_id, "message_added")
    assert (added["run_id"], added["before"], added["messages"]) == (joining_id, stage_id, [user("no, b")])
    done = await thread.event(joining_id, "done")
    assert done["merged_into"]["run_id"] == run_id
    assert [event for event, _ in await thread.events(joining_id)] == ["run_queued", "done"]
    assert [message["content"] for message in await thread.out(run_id)] == [None, "5", "no, b", "B"]
    state = await thread.read()
    assert [turn.run_id for turn in state.turns] == [run_id]
    assert (state.waiting, state.merged) == ((), {joining_id: run_id})
    await thread.say("c")
    assert contents(model) == ["a", None, "5", "no, b", "B", "c"]


async def test_message_for_a_queued_run_joins_before_its_first_stage(thread: ThreadRuns, model: ScriptedModel) -> None:
    run_id = await thread.post("a")
    for text in ("b", "c"):
        await thread.post(text, thread=STEER)
    await thread.work(run_id)

    assert contents(model) == ["a", "b", "c"]
    assert [message["content"] for message in await thread.out(run_id)] == ["b", "c", "yes"]
    names = [event for event, _ in await thread.events(run_id)]
    assert names[:5] == ["run_queued", "run_started", "history_composed", "message_added", "message_added"]


async def test_message_after_the_last_request_gets_a_turn_of_its_own(thread: ThreadRuns, model: ScriptedModel) -> None:
    model.answers = [[says("A")], [says("B")]]
    run_id, joining_id = await steered(thread, model)
    assert (await thread.read()).active_run_id == joining_id
    await thread.work(joining_id)

    assert contents(model) == ["a", "A", "no, b"]
    assert "merged_into" not in await thread.event(joining_id, "done")
    assert (await thread.turn(joining_id)).parent_run_id == run_id


async def test_stage_that_starts_again_keeps_the_message(thread: ThreadRuns, model: ScriptedModel) -> None:
    """Its worker dies while the model answers; the next attempt reads from the log what joined, and where."""
    model.answers = [[calls()], [says("No", None)], [says("B")]]
    model.may_answer.clear()
    held = HeldModel(model, request=2)
    run_id = await thread.post("a", tools=["add"], max_rounds=3)
    dying = asyncio.create_task(thread.work(run_id))
    await model.is_asked.wait()
    await thread.post("no, b", thread=STEER)
    model.may_answer.set()
    await held.until_said()
    await until(lambda: _texts_of(thread, run_id))
    await runs_by_hand.stop(await runs_by_hand.claim_by_hand(thread.redis, run_id))  # fences the first worker
    await cancel_and_wait(dying)
    await thread.post("later", thread=STEER)
    await thread.work(run_id)

    assert contents(model, -1) == contents(model, -2) == ["a", None, "5", "no, b"]
    assert (await thread.event(run_id, "message_added"))["before"] == "extraction.2"
    assert [message["content"] for message in await thread.out(run_id)] == [None, "5", "no, b", "B"]


async def _texts_of(thread: ThreadRuns, run_id: str) -> list[str]:
    return [
        data["tool_results"]["choices"][0]["delta"]["content"]
        for event, data in await thread.events(run_id)
        if event == "tool_completion_chunk" and data["stage_id"] == "extraction.2"
    ]


@pytest.mark.parametrize("is_stored", [True, False], ids=["after", "before"])
async def test_run_that_is_stopped_while_a_message_joins_it_ends(
    thread: ThreadRuns, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, *, is_stored: bool
) -> None:
    """Nobody knows whether the message has joined: the log is read again. Otherwise the end could get the message's id."""
    join, is_joining = thread_steering.join_run, asyncio.Event()

    async def join_and_hang(*args: Any, **fields: Any) -> Any:
        if is_stored:
            await join(*args, **fields)
        is_joining.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(thread_steering, "join_run", join_and_hang)
    run_id = await thread.post("a")
    joining_id = await thread.post("b", thread=STEER)
    working = asyncio.create_task(thread.work(run_id))
    await is_joining.wait()
    await run_store.cancel_run(redis, settings, run_id)
    await working

    assert (await thread.events(run_id))[-1][0] == "cancel"
    assert await thread.out(run_id) == ([user("b")] if is_stored else [])
    state = await thread.read()
    assert state.active_run_id == ("" if is_stored else joining_id)
    if not is_stored:
        await thread.work(joining_id)
        assert await thread.out(joining_id) == [answer("yes")]


async def test_lost_reply_says_the_message_once(
    thread: ThreadRuns, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, has_failed = thread_steering.join_run, asyncio.Event()

    async def lose_first_reply(*args: Any, **fields: Any) -> Any:
        joined = await join(*args, **fields)
        if not has_failed.is_set():
            has_failed.set()
            raise RedisConnectionError("the reply is lost")
        return joined

    monkeypatch.setattr(thread_steering, "join_run", lose_first_reply)
    run_id = await thread.post("a")
    await thread.post("b", thread=STEER)
    await thread.work(run_id)

    assert has_failed.is_set()
    assert contents(model) == ["a", "b"]
    assert await thread.out(run_id) == [user("b"), answer("yes")]
    sequences = [event for event, _ in await thread.events(run_id)]
    assert sequences.count("message_added") == 1
    assert sequences[-1] == "done"


async def test_lost_tail_with_a_joined_message_says_it_once(
    thread: ThreadRuns, redis: Redis, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis forgets both that the message joined and what came after; the run is claimed again and takes it again."""
    join, attempts = thread_steering.join_run, 0

    async def join_and_forget(*args: Any, **fields: Any) -> Any:
        nonlocal attempts
        attempts += 1
        before = await snapshots.take(redis)
        joined = await join(*args, **fields)
        if attempts == 1:
            await snapshots.restore(redis, before)
        return joined

    monkeypatch.setattr(thread_steering, "join_run", join_and_forget)
    run_id = await thread.post("a")
    joining_id = await thread.post("b", thread=STEER)
    await thread.work(run_id)

    assert attempts == 2
    assert contents(model) == ["a", "b"]
    assert await thread.out(run_id) == [user("b"), answer("yes")]
    assert (await thread.event(joining_id, "done"))["merged_into"]["run_id"] == run_id
    state = await thread.read()
    assert (state.active_run_id, state.waiting, len(state.turns)) == ("", (), 1)


async def test_message_that_comes_at_any_moment_is_said_once(
    thread: ThreadRuns, redis: Redis, model: ScriptedModel
) -> None:
    """In the run that it steers or in a turn of its own, and never between a call and its result."""
    random = Random(7)

    async def steer_at_any_moment(text: str) -> None:
        for _ in range(random.randrange(25)):
            await redis.ping()
        await thread.post(text, thread=STEER)

    async def work_until_idle() -> None:
        while run_id := (await thread.read()).active_run_id:
            await thread.work(run_id)

    texts: list[str] = []
    for number in range(ROUNDS):
        model.answers = [[calls()], [says("B")]]
        await thread.post(f"{number}", tools=["add"], max_rounds=2)
        texts += [f"{number}", *(further := [f"{number}-{letter}" for letter in "ab"])]
        await asyncio.gather(work_until_idle(), *map(steer_at_any_moment, further))
        await work_until_idle()

    state = await thread.read()
    messages = [message for turn in state.turns for message in (*turn.messages_in, *turn.messages_out)]
    said = [message["content"] for message in messages if message["role"] == "user"]
    assert sorted(said) == sorted(texts)
    assert 0 < len(state.merged) < 2 * ROUNDS, "some joined a run, some came too late"
    for before, after in pairwise(messages):
        assert bool(before.get("tool_calls")) == (after["role"] == "tool")
