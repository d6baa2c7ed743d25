"""Threads with a real server: runs become turns one after the other, and what they said stays."""

from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Done, Error, Event
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.threads import OnActive, ThreadIdentity, ThreadRequest
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import run_store, thread_store
from stagebus.shared.thread_errors import ThreadNotFound

THREAD = ThreadIdentity("t", "ada", "chat-7")
KEY = keys.thread(THREAD)


async def post(redis: Redis, settings: Settings, text: str = "hello", **placed: Any) -> str:
    thread = ThreadRequest(THREAD, [{"role": "user", "content": text}], **placed)
    return await run_store.create_run(redis, settings, tenant="t", model="m", request={}, user="ada", thread=thread)


async def end(redis: Redis, settings: Settings, run_id: str, event: Event | None = None) -> None:
    claim = await run_scripts.claim(redis, run_id, "")
    assert claim is not None
    assert await run_store.end_claimed(redis, settings, run_id, claim, event or Done())


async def test_run_of_an_idle_thread_is_active_at_once(redis: Redis, settings: Settings) -> None:
    run_id = await post(redis, settings)
    thread = await thread_store.read_thread(redis, THREAD, with_messages=True)

    assert (thread.active_run_id, thread.head_run_id, thread.waiting) == (run_id, run_id, ())
    assert [(turn.run_id, turn.parent_run_id, turn.seq, turn.status) for turn in thread.turns] == [(run_id, "", 1, "")]
    assert thread.turns[0].messages_in == ({"role": "user", "content": "hello"},)
    assert (await queue_scripts.list_due(redis, 1)).run_ids == [run_id]
    assert partition_of(run_id) == THREAD.tag
    run = await run_store.get_run(redis, run_id)
    assert (run.thread_key, run.thread_id, run.user) == (KEY, "chat-7", "ada")


async def test_end_closes_the_turn_and_makes_the_next_run_active(redis: Redis, settings: Settings) -> None:
    first, second, third = [await post(redis, settings, str(n), on_active=OnActive.ENQUEUE) for n in range(3)]
    before = await thread_store.read_thread(redis, THREAD)
    await end(redis, settings, first)
    after = await thread_store.read_thread(redis, THREAD)

    assert [(run.run_id, run.position) for run in before.waiting] == [(second, 1), (third, 2)]
    assert after.active_run_id == second
    assert [turn.parent_run_id for turn in after.turns] == ["", first]
    assert [turn.status for turn in after.turns] == ["succeeded", ""]
    assert [run.run_id for run in after.waiting] == [third]
    assert set((await queue_scripts.list_due(redis, 9)).run_ids) == {first, second}, (
        "a worker removes the first one's job"
    )
    await end(redis, settings, second)
    await end(redis, settings, third)


async def test_path_has_the_messages_from_the_root_to_the_parent(redis: Redis, settings: Settings) -> None:
    first = await post(redis, settings, "one")
    await end(redis, settings, first)
    second = await post(redis, settings, "two")
    path = await thread_store.path_to(redis, KEY, second, 10**6)
    cut = await thread_store.path_to(redis, KEY, second, 1)
    await end(redis, settings, second)

    assert [(turn.run_id, turn.messages_in) for turn in path.turns] == [(first, ({"role": "user", "content": "one"},))]
    assert path.messages_in == ({"role": "user", "content": "two"},)
    assert (path.cut_turns, cut.turns, cut.cut_turns) == (0, (), 1)


async def test_failure_that_would_repeat_leaves_the_branch(redis: Redis, settings: Settings) -> None:
    """The next run continues from the turn before; the failed one stays in the tree and can be named."""
    first = await post(redis, settings)
    await end(redis, settings, first)
    poison = await post(redis, settings)
    await end(redis, settings, poison, Error(error="no", code="model_rejected"))
    after = await post(redis, settings)
    thread = await thread_store.read_thread(redis, THREAD)
    await end(redis, settings, after)

    assert [(turn.parent_run_id, turn.status, turn.code) for turn in thread.turns] == [
        ("", "succeeded", ""), (first, "failed", "model_rejected"), (first, "", ""),
    ]  # fmt: skip


async def test_worker_cannot_claim_a_run_before_its_turn(redis: Redis, settings: Settings) -> None:
    """Even if its place in the queue was lost, so that it looks due. The claim gives it back in one step."""
    first = await post(redis, settings)
    second = await post(redis, settings, on_active=OnActive.ENQUEUE)
    await redis.zadd(keys.QUEUE, {second: 1})
    assert await queue_scripts.acquire(redis, second, "token", 5)

    with pytest.raises(run_scripts.TurnNotCome):
        await run_scripts.claim(redis, second, "w", token="token")
    assert await redis.zscore(keys.QUEUE, second) == keys.THROTTLED_SCORE
    assert not await redis.exists(keys.lease(second))
    await end(redis, settings, first)
    assert await queue_scripts.acquire(redis, second, "token", 5)
    assert await run_scripts.claim(redis, second, "w", token="token")
    await end(redis, settings, second)


async def test_end_that_does_not_name_the_thread_is_refused(redis: Redis, settings: Settings) -> None:
    """A process of an older version must not end a run past its thread, which would stay busy. It believes to be fenced."""
    run_id = await post(redis, settings)
    claim = await run_scripts.claim(redis, run_id, "")
    assert claim is not None

    with pytest.raises(AssertionError):
        await run_scripts.append(
            redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
            entries=[LogEntry(RUN_STAGE, "done", b"{}")], end=run_store.terminal_state_of(Done(), settings),
        )  # fmt: skip
    await end(redis, settings, run_id)


async def test_unknown_thread_is_not_found(redis: Redis) -> None:
    with pytest.raises(ThreadNotFound):
        await thread_store.read_thread(redis, THREAD)
