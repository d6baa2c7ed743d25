"""Turns of a thread with a scripted model: what each run sees, and what each leaves, whoever ends it."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Cancel, StageStarted, ToolCompletionChunk
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import ModelRejected
from stagebus.shared.log.transcript import LOST, NOT_RUN, OUTCOME_UNKNOWN
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.store import run_deletion, run_store
from stagebus.tools import tool
from stagebus.worker.execution import thread_run
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.chat_chunks import ITEMS_KEY, AnswerItems
from tests.support import runs_by_hand, snapshots
from tests.support.scripted_model import HeldModel, ScriptedModel, providers_of
from tests.support.thread_runs import IDENTITY, ThreadRuns, answer, user
from tests.support.waiting import until

OTHER_APIS = [{"name": api, "api": api} for api in ("responses", "messages")]
PROVIDERS = providers_of({"p": ["native", {"name": "small", "context_tokens": 700}], "q": ["other", *OTHER_APIS]})
SUM = '{"a": 2, "b": 3}'
KEY = keys.thread(IDENTITY)
# It moves on with the conversation.
CACHE_MARK = ', "cache_control": {"type": "ephemeral"}'

_begun: list[asyncio.Event] = []


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(idempotent=False)
async def pay(amount: int) -> str:
    """Pay, and never come back."""
    _begun[-1].set()
    await asyncio.Event().wait()
    return str(amount)


def says(text: str, finish_reason: str | None = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


def calls(*named: tuple[str, str], **delta: str) -> dict[str, Any]:
    requests = [
        {"index": n, "id": f"c{n}", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(named)
    ]
    return {"choices": [{"index": 0, "delta": {"tool_calls": requests, **delta}, "finish_reason": "tool_calls"}]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"tools": (f"{__name__}:add", f"{__name__}:pay"), "model_retries_max": 0})


@pytest.fixture
def begun() -> asyncio.Event:
    """Set when `pay` runs."""
    _begun[:] = [asyncio.Event()]
    return _begun[-1]


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(default=[says("yes")], providers=PROVIDERS)


@pytest.fixture
def thread(redis: Redis, settings: Settings, runner: Runner) -> ThreadRuns:
    return ThreadRuns(redis, settings, runner)


def sent(model: ScriptedModel, request: int = -1) -> list[dict[str, Any]]:
    """The messages of a request, as its provider gets them."""
    messages: list[dict[str, Any]] = model.bodies[request]["messages"]
    return messages


def contents(model: ScriptedModel, request: int = -1) -> list[str | None]:
    return [message["content"] for message in sent(model, request)]


async def test_each_turn_sees_the_turns_before_it(thread: ThreadRuns, model: ScriptedModel) -> None:
    model.answers = [[says("A")], [says("B")], [says("C")]]
    first = await thread.say({"role": "system", "content": "be kind"}, "a")
    second = await thread.say("b")
    third = await thread.say("c")

    assert contents(model, 0) == ["be kind", "a"]
    assert contents(model, 1) == ["be kind", "a", "A", "b"]
    assert contents(model, 2) == ["be kind", "a", "A", "b", "B", "c"]
    assert await thread.out(third) == [answer("C")]
    composed = await thread.event(third, "history_composed")
    assert (composed["parent"], composed["turns"], composed["messages"]) == (second, 2, 4)
    assert "parent" not in await thread.event(first, "history_composed")


async def test_rounds_of_calls_stay_in_the_history(thread: ThreadRuns, model: ScriptedModel) -> None:
    """A provider that repeats its ids must not make two calls of one conversation equal."""
    for _ in range(2):
        model.answers = [[calls(("add", SUM))], [says("It is 5.")]]
        last = await thread.say("How much is 2 and 3?", tools=["add"])

    (call,), result = sent(model)[-2]["tool_calls"], sent(model)[-1]
    assert (result["content"], result["tool_call_id"]) == ("5", call["id"])
    first_call = sent(model)[1]["tool_calls"][0]
    assert first_call["id"] != call["id"]
    assert [message["role"] for message in sent(model)] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert [message["role"] for message in await thread.out(last)] == ["assistant", "tool", "assistant"]


async def test_stopped_answer_is_kept_and_continues_the_history(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, settings: Settings
) -> None:
    run_id = await thread.post("a")
    model.answers = [[says("It is", None), *[says(" mi", None)] * 3]]
    held = HeldModel(model)
    working = asyncio.create_task(thread.work(run_id))
    await held.until_said()
    await until(lambda: _has(thread, run_id, "tool_completion_chunk"))
    await run_store.cancel_run(redis, settings, run_id)
    await working

    assert await thread.out(run_id) == [answer("It is", partial=True)]
    await thread.say("b")
    assert sent(model) == [user("a"), answer("It is"), user("b")]


async def test_cut_calls_have_results_and_do_not_run_again(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, settings: Settings, begun: asyncio.Event
) -> None:
    run_id = await thread.post("pay", tools=["add", "pay"])
    model.answers = [[calls(("pay", '{"amount": 1}'), ("add", SUM), content="Paying.")]]
    working = asyncio.create_task(thread.work(run_id))
    await begun.wait()
    await until(lambda: _has(thread, run_id, "tool_result"))
    await run_store.cancel_run(redis, settings, run_id)
    await working

    calling, paid, added = await thread.out(run_id)
    assert [call["function"]["name"] for call in calling["tool_calls"]] == ["pay", "add"]
    assert (paid["content"], paid["is_error"]) == (OUTCOME_UNKNOWN, True)
    assert added["content"] == "5"
    begun.clear()
    await thread.say("and now?", tools=["add", "pay"])
    assert [message["role"] for message in sent(model)] == ["user", "assistant", "tool", "tool", "user"]
    assert all(set(message) <= {"role", "content", "tool_calls", "tool_call_id"} for message in sent(model))
    assert not begun.is_set()


async def _has(thread: ThreadRuns, run_id: str, name: str) -> bool:
    return name in [event for event, _ in await thread.events(run_id)]


async def test_run_that_never_began_leaves_its_message(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, settings: Settings
) -> None:
    """A gateway ends it; the next turn has two messages of the user in a row."""
    run_id = await thread.post("a")
    await run_store.cancel_run(redis, settings, run_id)
    await thread.say("b")

    assert await thread.out(run_id) == []
    assert contents(model) == ["a", "b"]


async def test_dead_workers_turn_is_continued_and_written_once(thread: ThreadRuns, model: ScriptedModel) -> None:
    """The second attempt gets the same messages, and tells of the history no second time."""
    await thread.say("a")
    run_id = await thread.post("b")
    model.answers = [[says("It", None)]]
    held = HeldModel(model, request=2)
    dying = asyncio.create_task(thread.work(run_id))
    await held.until_said()
    await until(lambda: _has(thread, run_id, "tool_completion_chunk"))
    dead = await runs_by_hand.claim_by_hand(thread.redis, run_id)  # fences the first worker, and dies at once
    await runs_by_hand.stop(dead)
    await cancel_and_wait(dying)
    await thread.work(run_id, "token")

    assert sent(model, -1) == sent(model, -2) == [user("a"), answer("yes"), user("b")]
    assert await thread.out(run_id) == [answer("yes")]
    assert (await thread.event(run_id, "history_composed"))["turns"] == 1
    assert [turn.run_id for turn in (await thread.read()).turns].count(run_id) == 1


async def test_gateway_ends_a_run_with_what_its_log_says(
    thread: ThreadRuns, redis: Redis, settings: Settings, model: ScriptedModel
) -> None:
    """Its worker died in the middle of an answer."""
    run_id = await thread.post("a")
    dead = await runs_by_hand.claim_by_hand(redis, run_id)
    await dead.put(StageStarted(stage_id="extraction", attempt=1))
    await dead.put(ToolCompletionChunk(stage_id="extraction", tool_results=says("It is", None)))
    await runs_by_hand.stop(dead)
    await redis.hset(keys.run(run_id), "worker", "")  # type: ignore[misc]

    assert await run_store.end_unheld(redis, settings, run_id, Cancel())
    assert await thread.out(run_id) == [answer("It is", partial=True)]
    await thread.say("b")
    assert sent(model) == [user("a"), answer("It is"), user("b")]


async def test_damaged_log_leaves_a_note(thread: ThreadRuns, redis: Redis, model: ScriptedModel) -> None:
    run_id = await thread.post("a")
    dead = await runs_by_hand.claim_by_hand(redis, run_id)
    await dead.begin("extraction")
    await runs_by_hand.stop(dead)
    await redis.delete(keys.stage_stream(run_id, "extraction"))
    await thread.work(run_id)

    assert (await thread.event(run_id, "error"))["code"] == "run_failed"
    assert await thread.out(run_id) == [answer(LOST, partial=True)]
    await thread.say("b")
    assert contents(model) == ["a", LOST, "b"]


async def test_rejected_message_leaves_the_branch(thread: ThreadRuns, model: ScriptedModel) -> None:
    model.answers = [[says("A")], [ModelRejected("too bad")], [says("C")]]
    first = await thread.say("a")
    poison = await thread.say("poison")
    third = await thread.say("c")

    assert contents(model) == ["a", "A", "c"]
    assert (await thread.turn(third)).parent_run_id == first
    await thread.say("again", thread={"parent_run_id": poison})
    assert contents(model) == ["a", "A", "poison", "again"], "it can still be named"


async def test_history_that_is_too_long_fails_before_the_model_is_asked(
    thread: ThreadRuns, model: ScriptedModel
) -> None:
    await thread.say("a" * 1500)
    first = await thread.say("b")
    asked = len(model.requests)
    too_long = await thread.say("c", model="small")

    error = await thread.event(too_long, "error")
    assert error["code"] == "history_too_long"
    assert "oldest_turns" in error["error"]
    assert len(model.requests) == asked
    fits = await thread.say("d", model="small", truncate="oldest_turns")
    assert contents(model) == ["b", "yes", "d"]
    assert (await thread.turn(fits)).parent_run_id == first, "the run that failed is not on the branch"
    assert (await thread.event(fits, "history_composed"))["cut_turns"] == 1


async def test_deleted_turns_are_left_out(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, settings: Settings
) -> None:
    await thread.say("a")
    deleted = await thread.say("b")
    await thread.say("c")
    await run_deletion.delete_run(redis, settings, deleted, RunOwner(IDENTITY.tenant))
    last = await thread.say("d")

    assert contents(model) == ["a", "yes", "c", "yes", "d"]
    assert (await thread.event(last, "history_composed"))["cut_turns"] == 1


async def test_damaged_thread_leaves_what_can_be_read(thread: ThreadRuns, model: ScriptedModel, redis: Redis) -> None:
    first = await thread.say("a")
    await thread.say("b")
    await redis.hdel(keys.thread_in(KEY), first)  # type: ignore[misc]
    last = await thread.say("c")

    assert contents(model) == ["b", "yes", "c"]
    assert (await thread.event(last, "history_composed"))["cut_turns"] == 1


async def test_run_whose_own_messages_are_gone_fails(thread: ThreadRuns, redis: Redis) -> None:
    run_id = await thread.post("a")
    await redis.hdel(keys.thread_in(KEY), run_id)  # type: ignore[misc]
    await thread.work(run_id)

    assert (await thread.event(run_id, "error"))["code"] == "run_failed"


async def test_notes_go_back_to_the_provider_that_wrote_them(thread: ThreadRuns, model: ScriptedModel) -> None:
    extra = {"google": {"thought_signature": "abc="}}
    answer_with_notes = calls(("add", SUM))
    answer_with_notes["choices"][0]["delta"]["tool_calls"][0]["extra_content"] = extra
    model.answers = [[answer_with_notes], [says("5")]]
    await thread.say("How much?", tools=["add"])
    await thread.say("b")
    assert sent(model)[1]["tool_calls"][0]["extra_content"] == extra
    await thread.say("c", model="other")
    assert "extra_content" not in json.dumps(sent(model))


async def test_stopped_turns_are_accepted_by_every_api(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, settings: Settings, begun: asyncio.Event
) -> None:
    """A turn that never began, one whose calls were cut, and a partial answer: no field of ours, and no open call."""
    await run_store.cancel_run(redis, settings, await thread.post({"role": "system", "content": "be kind"}, "a"))
    run_id = await thread.post("pay", tools=["pay"])
    model.answers = [[calls(("pay", '{"amount": 1}'))]]
    working = asyncio.create_task(thread.work(run_id))
    await begun.wait()
    await run_store.cancel_run(redis, settings, run_id)
    await working
    dead = await runs_by_hand.claim_by_hand(redis, run_id := await thread.post("b"))
    await dead.begin("extraction")
    await dead.say("It is")
    await runs_by_hand.stop(dead)
    await redis.hset(keys.run(run_id), "worker", "")  # type: ignore[misc]
    await run_store.end_unheld(redis, settings, run_id, Cancel())

    await thread.say("c", model="messages")
    body = model.bodies[-1]
    assert body["system"] == [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    blocks = [[block["type"] for block in message["content"]] for message in body["messages"]]
    assert blocks == [["text", "text"], ["tool_use"], ["tool_result", "text"], ["text"], ["text"]]

    await thread.say("d", model="responses")
    body = model.bodies[-1]
    assert body["instructions"] == "be kind"
    kinds = [item.get("role") or item["type"] for item in body["input"]]
    assert kinds == [
        "user", "user", "function_call", "function_call_output", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert body["input"][2]["call_id"] == body["input"][3]["call_id"]
    assert not {"partial", "is_error", "origin"} & set().union(*body["input"])


@pytest.mark.parametrize("api", ["native", "responses", "messages"])
async def test_next_turn_begins_with_what_the_model_saw_last(
    thread: ThreadRuns, model: ScriptedModel, api: str
) -> None:
    """To the byte, with the model's own items: it is what a provider's cache holds."""
    thinking: dict[str, list[dict[str, Any]]] = {
        "native": [],
        "responses": [{"type": "reasoning", "encrypted_content": "secret"}, {"type": "function_call"}],
        "messages": [{"type": "thinking", "thinking": "Hm.", "signature": "secret"}, {"type": "tool_use"}],
    }
    items = [{"choices": [], ITEMS_KEY: AnswerItems(api, thinking[api])}] if thinking[api] else []  # type: ignore[arg-type]
    model.answers = [[calls(("add", SUM), content="Let me see."), *items], [says("It is 5.")]]
    await thread.say("How much?", tools=["add"], model=api)
    model.answers = [[says("B")]]
    await thread.say("b", tools=["add"], model=api)

    field = "input" if api == "responses" else "messages"
    before, after = (json.loads(json.dumps(body[field]).replace(CACHE_MARK, "")) for body in model.bodies[-2:])
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2, "the answer and the next question"


async def test_calls_before_a_tools_stage_were_not_run(thread: ThreadRuns, model: ScriptedModel) -> None:
    """The run ends between the model's calls and their stage: a budget is used up there, for example."""
    model.answers = [
        [
            calls(("add", SUM)),
            {"choices": [], "usage": {"prompt_tokens": 990, "completion_tokens": 20, "total_tokens": 1010}},
        ]
    ]
    run_id = await thread.say("How much?", tools=["add"], max_total_tokens=1000)

    assert (await thread.event(run_id, "error"))["code"] == "budget_exceeded"
    assert [message["content"] for message in await thread.out(run_id)] == [None, NOT_RUN]


async def test_tail_that_is_lost_at_the_end_is_in_the_turn(
    thread: ThreadRuns, model: ScriptedModel, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker sends the lost events again before it reads what the run came to."""
    read, losses = thread_run.read_turn, 0

    async def lose_tail_and_read(*args: Any) -> Any:
        nonlocal losses
        losses += 1
        if losses == 1:
            await snapshots.restore(redis, before)
        return await read(*args)

    monkeypatch.setattr(thread_run, "read_turn", lose_tail_and_read)
    run_id = await thread.post("a")
    model.answers = [[says("It is", None), ModelRejected("too bad")]]
    model.may_answer.clear()
    working = asyncio.create_task(thread.work(run_id))
    await until(lambda: _has(thread, run_id, "stage_started"))
    before = await snapshots.take(redis)
    model.may_answer.set()
    await working

    assert losses == 2
    assert await thread.out(run_id) == [answer("It is", partial=True)]
    assert [event for event, _ in await thread.events(run_id)][-2:] == ["tool_completion_chunk", "error"]


@pytest.mark.parametrize("part", ["", ":turns", ":in", ":out", ":line", ":order"])
async def test_run_ends_although_a_key_of_its_thread_was_replaced(
    thread: ThreadRuns, redis: Redis, settings: Settings, part: str
) -> None:
    await thread.say("a")
    run_id = await thread.post("b")
    await redis.delete(KEY + part)
    await redis.set(KEY + part, "damaged", ex=60)
    await thread.work(run_id)

    assert (await run_store.get_run(redis, run_id)).is_terminal
