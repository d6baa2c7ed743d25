"""Threads with a real server: runs become turns one after the other, and what they said stays."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import threads
from stagebus.shared.domain.events import Cancel, Done, Error
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.domain.runs import RUN_STAGE, RunStatus
from stagebus.shared.domain.threads import ROOT, OnActive
from stagebus.shared.errors import IdempotencyConflict
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import keys, queue_scripts, run_scripts, thread_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import parking, run_store, thread_store
from stagebus.shared.store.run_health import RunHealth, read_run_health
from stagebus.shared.thread_errors import (
    ParentNotEnded,
    ParentNotFound,
    ThreadBusy,
    ThreadDeleting,
    ThreadFull,
    ThreadNotFound,
    ThreadQueueFull,
    TurnNotCome,
)
from tests.support.threads_by_hand import ENQUEUE, IDENTITY, INTERRUPT, KEY, STEER, ThreadByHand


@pytest.fixture
async def thread(redis: Redis, settings: Settings) -> AsyncIterator[ThreadByHand]:
    by_hand = ThreadByHand(redis, settings)
    yield by_hand
    if await redis.exists(KEY):
        await by_hand.end_all()
        assert await redis.ttl(KEY) > 0
    assert not await redis.smembers(keys.threads_busy(IDENTITY.tag))


async def test_run_of_an_idle_thread_is_active_at_once(thread: ThreadByHand) -> None:
    run_id = await thread.post()
    read = await thread.read(with_messages=True)

    assert (read.active_run_id, read.head_run_id, read.waiting) == (run_id, run_id, ())
    assert [(turn.run_id, turn.parent_run_id, turn.seq, turn.status) for turn in read.turns] == [(run_id, "", 1, "")]
    assert read.turns[0].messages_in == ({"role": "user", "content": "hello"},)
    assert await thread.due() == {run_id}
    assert partition_of(run_id) == IDENTITY.tag
    run = await thread.run(run_id)
    assert (run.thread_key, run.thread_id, run.user) == (KEY, "chat-7", "ada")


async def test_end_closes_the_turn_and_makes_the_next_run_active(thread: ThreadByHand) -> None:
    first, second, third = [await thread.post(str(number), on_active=ENQUEUE) for number in range(3)]
    before = await thread.read()
    await thread.end(first)
    after = await thread.read()

    assert [(run.run_id, run.position) for run in before.waiting] == [(second, 1), (third, 2)]
    assert after.active_run_id == second
    assert [turn.parent_run_id for turn in after.turns] == ["", first]
    assert [turn.status for turn in after.turns] == ["succeeded", ""]
    assert [run.run_id for run in after.waiting] == [third]
    assert await thread.due() == {second}


async def test_path_has_the_messages_from_the_root_to_the_parent(thread: ThreadByHand) -> None:
    first = await thread.post("one")
    await thread.end(first)
    second = await thread.post("two")
    path = await thread_store.path_to(thread.redis, KEY, second, 10**6)
    cut = await thread_store.path_to(thread.redis, KEY, second, 1)

    assert [(turn.run_id, turn.messages_in) for turn in path.turns] == [(first, ({"role": "user", "content": "one"},))]
    assert path.messages_in == ({"role": "user", "content": "two"},)
    assert (path.cut_turns, cut.turns, cut.cut_turns) == (0, (), 1)


@pytest.mark.parametrize("bytes_max", [10**6, 150])
async def test_path_is_the_same_however_many_turns_a_script_reads(
    thread: ThreadByHand, monkeypatch: pytest.MonkeyPatch, bytes_max: int
) -> None:
    """A long path is read in steps, so that no script holds Redis for long."""
    for number in range(7):
        last = await thread.post(f"turn {number}")
        await thread.end(last)
    whole = await thread_store.path_to(thread.redis, KEY, last, bytes_max)
    monkeypatch.setattr(thread_scripts, "PATH_STEP_TURNS", 2)
    in_steps = await thread_store.path_to(thread.redis, KEY, last, bytes_max)

    assert in_steps == whole
    assert len(whole.turns) + whole.cut_turns == 6
    assert bool(whole.cut_turns) == (bytes_max == 150)


@pytest.mark.parametrize("code", sorted(threads.CODES_OFF_BRANCH))
async def test_failure_that_would_repeat_leaves_the_branch(thread: ThreadByHand, code: str) -> None:
    """The next run continues from the turn before; the failed one stays in the tree and can be named."""
    first = await thread.post()
    await thread.end(first)
    poison = await thread.post()
    await thread.end(poison, Error(error="no", code=code))
    after = await thread.post()
    await thread.end(after)
    named = await thread.post(parent_run_id=poison)

    assert [(turn.parent_run_id, turn.status, turn.code) for turn in (await thread.read()).turns] == [
        ("", "succeeded", ""), (first, "failed", code), (first, "succeeded", ""), (poison, "", ""),
    ]  # fmt: skip
    assert (await thread.read()).head_run_id == named


@pytest.mark.parametrize(
    "end", [Cancel(), Error(error="x", code="run_timeout"), Error(error="x", code="queue_timeout")]
)
async def test_other_ends_stay_on_the_branch(thread: ThreadByHand, end: Cancel | Error) -> None:
    first = await thread.post()
    await thread.end(first, end)

    second = await thread.post()
    assert (await thread.read()).turns[1].parent_run_id == first
    assert second


async def test_worker_cannot_claim_a_run_before_its_turn(thread: ThreadByHand) -> None:
    """Even if its place in the queue was lost, so that it looks due. The claim gives it back in one step."""
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.redis.zadd(keys.QUEUE, {second: 1})

    with pytest.raises(TurnNotCome):
        await thread.work(second)
    assert await thread.redis.zscore(keys.QUEUE, second) == keys.THROTTLED_SCORE
    assert not await thread.redis.exists(keys.lease(second))
    await thread.end(first)
    await queue_scripts.admit(thread.redis, second)
    assert await thread.work(second)


async def test_claim_whose_job_does_not_name_the_thread_finds_it(thread: ThreadByHand) -> None:
    await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    await thread.redis.zadd(keys.QUEUE, {second: 1})
    assert await queue_scripts.acquire(thread.redis, second, "token", 5)

    with pytest.raises(TurnNotCome):
        await run_scripts.claim(thread.redis, second, "w", token="token")


async def test_end_that_does_not_name_the_thread_is_refused(thread: ThreadByHand) -> None:
    """A process of an older version must not end a run past its thread, which would stay busy. It believes to be fenced."""
    run_id = await thread.post()
    claim = await run_scripts.claim(thread.redis, run_id, "")
    assert claim is not None

    with pytest.raises(AssertionError, match="thread"):
        await run_scripts.append(
            thread.redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"",
            entries=[LogEntry(RUN_STAGE, "done", b"{}")], end=run_store.terminal_state_of(Done(), thread.settings),
        )  # fmt: skip
    assert not (await thread.run(run_id)).is_terminal


async def test_unknown_thread_is_not_found(redis: Redis) -> None:
    with pytest.raises(ThreadNotFound):
        await thread_store.read_thread(redis, IDENTITY)


# --- policies ----------------------------------------------------------------


async def test_busy_thread_refuses_and_names_its_run(thread: ThreadByHand) -> None:
    """A refused run leaves nothing behind, and its client's key is free for another body."""
    first = await thread.post(idempotency_key="mine")
    kept = await thread.redis.dbsize()

    with pytest.raises(ThreadBusy) as refused:
        await thread.post("again", idempotency_key="k")
    assert refused.value.run_id == first
    assert len(refused.value.request_digest) == 64
    assert await thread.redis.dbsize() == kept
    second = await thread.post("other", idempotency_key="k", on_active=ENQUEUE)
    with pytest.raises(ThreadBusy):  # what waits is never overtaken
        await thread.post()
    await thread.end(first)
    with pytest.raises(ThreadBusy) as refused:
        await thread.post()
    assert refused.value.run_id == second


async def test_repeated_post_finds_its_own_run_and_not_a_busy_thread(thread: ThreadByHand) -> None:
    first = await thread.post(idempotency_key="k")

    assert await thread.post(idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict):
        await thread.post("another text", idempotency_key="k")


async def test_interrupt_is_next_and_ends_a_run_that_no_worker_holds(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    now = await thread.post(on_active=INTERRUPT)
    read = await thread.read()

    assert (await thread.run(first)).status is RunStatus.CANCELLED
    assert "interrupted" in ((await thread.run(first)).cancel_reason or "")
    assert read.active_run_id == now
    assert [run.run_id for run in read.waiting] == [second]
    assert read.turns[1].parent_run_id == first


async def test_interrupt_tells_the_worker_of_the_active_run(thread: ThreadByHand) -> None:
    first = await thread.post()
    await thread.work(first)
    async with thread.redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.control(first))
        await pubsub.get_message(timeout=5)
        now = await thread.post(on_active=INTERRUPT)
        message = await pubsub.get_message(timeout=5)

    assert message is not None
    assert message["data"] == b"cancel"
    read = await thread.read()
    assert (read.active_run_id, [run.run_id for run in read.waiting]) == (first, [now])
    assert (await thread.run(first)).cancel


async def test_interrupt_makes_a_parked_run_due(thread: ThreadByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the gateway dies after the script, a worker or the sweep ends the run, though it waits for something far ahead."""

    async def die(*_: object) -> None:
        return None

    first = await thread.post()
    claim = await thread.work(first)
    later_ms = wall_ms() + 10**8
    assert await parking.park(
        thread.redis, first, token=f"w {first}", attempt=claim.attempt, due_ms=later_ms, seen=parking.Seen()
    )
    monkeypatch.setattr(run_store, "_end_interrupted", die)
    assert first not in await thread.due()
    await thread.post(on_active=INTERRUPT)

    assert first in await thread.due()


async def test_newer_interrupt_replaces_one_that_waits(thread: ThreadByHand) -> None:
    """The older one never becomes a turn, and runs that were to steer either run steer the newest."""
    first = await thread.post()
    await thread.work(first)
    steering = await thread.post(on_active=STEER)
    older = await thread.post(on_active=INTERRUPT)
    for_older = [run.steers for run in (await thread.read()).waiting]
    newer = await thread.post(on_active=INTERRUPT)
    read = await thread.read()

    assert for_older == ["", older]
    assert [(run.run_id, run.on_active, run.steers) for run in read.waiting] == [
        (newer, OnActive.INTERRUPT, ""), (steering, OnActive.STEER, newer),
    ]  # fmt: skip
    assert (await thread.run(older)).status is RunStatus.CANCELLED
    assert older not in {turn.run_id for turn in read.turns}


async def test_steering_run_that_nobody_takes_becomes_a_turn(thread: ThreadByHand) -> None:
    first = await thread.post()
    steering = await thread.post(on_active=STEER)
    waiting = (await thread.read()).waiting
    await thread.end(first)

    assert [(run.run_id, run.steers) for run in waiting] == [(steering, first)]
    assert (await thread.read()).active_run_id == steering


async def test_cancelled_waiting_run_leaves_no_message(thread: ThreadByHand) -> None:
    await thread.post()
    second = await thread.post("unsaid", on_active=ENQUEUE)
    await run_store.cancel_run(thread.redis, thread.settings, second)
    read = await thread.read(with_messages=True)

    assert (await thread.run(second)).status is RunStatus.CANCELLED
    assert (read.waiting, len(read.turns)) == ((), 1)
    assert read.size == len(b'[{"role":"user","content":"hello"}]')
    assert second.encode() not in await thread.redis.hgetall(keys.thread_in(KEY))


async def test_stream_of_a_waiting_run_is_not_told_of_a_missing_worker(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    before = await read_run_health(thread.redis, [first, "unknown", second], 8)
    await thread.end(first)

    assert before == [RunHealth.QUEUED, RunHealth.AT_REST, RunHealth.AT_REST]
    assert await read_run_health(thread.redis, [second], 8) == [RunHealth.QUEUED]


# --- parents -----------------------------------------------------------------


async def test_parent_is_a_turn_that_ended_or_is_active(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE, parent_run_id=first)
    with pytest.raises(ParentNotEnded):
        await thread.post(on_active=INTERRUPT, parent_run_id=second)
    with pytest.raises(ParentNotFound):
        await thread.post(on_active=ENQUEUE, parent_run_id="01J9ZK3V7Q8E5W2R4T6Y8U0P1A")
    await thread.end_all()
    edited = await thread.post(parent_run_id=first)
    await thread.end(edited)
    afresh = await thread.post(parent_run_id=ROOT)

    parents = {turn.run_id: turn.parent_run_id for turn in (await thread.read()).turns}
    assert parents == {first: "", second: first, edited: first, afresh: ""}


async def test_waiting_run_continues_the_branch_that_is_current_at_its_turn(thread: ThreadByHand) -> None:
    first = await thread.post()
    second = await thread.post(on_active=ENQUEUE)
    interrupting = await thread.post(on_active=INTERRUPT)
    await thread.end(interrupting)

    assert {turn.run_id: turn.parent_run_id for turn in (await thread.read()).turns}[second] == interrupting
    assert first


# --- bounds ------------------------------------------------------------------


async def test_bounds_of_waiting_runs_turns_and_bytes(thread: ThreadByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WAITING_MAX", 2)
    await thread.post()
    waiting = [await thread.post(on_active=ENQUEUE) for _ in range(2)]
    with pytest.raises(ThreadQueueFull):
        await thread.post(on_active=ENQUEUE)
    with pytest.raises(ThreadQueueFull):
        await thread.post(on_active=INTERRUPT)
    await run_store.cancel_run(thread.redis, thread.settings, waiting[0])
    await thread.post(on_active=INTERRUPT)
    await thread.post(on_active=INTERRUPT)  # replaces the first one

    monkeypatch.setattr(threads, "TURNS_MAX", 4)
    with pytest.raises(ThreadFull):
        await thread.post(on_active=ENQUEUE)
    monkeypatch.undo()
    monkeypatch.setattr(threads, "THREAD_MAX_BYTES", 200)
    with pytest.raises(ThreadFull):
        await thread.post("x" * 150, on_active=ENQUEUE)


# --- what was lost -----------------------------------------------------------


async def test_create_closes_the_turn_of_a_run_that_is_gone(thread: ThreadByHand) -> None:
    """Else its thread would be busy forever."""
    lost = await thread.post()
    await thread.redis.delete(keys.run(lost))
    now = await thread.post()
    read = await thread.read()

    assert (read.active_run_id, read.turns[0].status, read.turns[1].parent_run_id) == (now, "lost", lost)
    await thread.redis.zrem(keys.ACTIVE, lost)
    await thread.redis.delete(keys.job(lost), keys.stages(lost), keys.stage_stream(lost, RUN_STAGE))


async def test_run_of_a_deleted_thread_still_ends(thread: ThreadByHand) -> None:
    """Somebody deleted the thread's keys by hand. No part of the thread comes back."""
    run_id = await thread.post()
    await thread.redis.delete(*[key async for key in thread.redis.scan_iter("sb:thread*")])
    await thread.work(run_id)
    await thread.end(run_id)

    assert (await thread.run(run_id)).status is RunStatus.SUCCEEDED
    assert [key async for key in thread.redis.scan_iter("sb:thread*")] == []


async def test_thread_that_is_being_deleted_takes_no_run(thread: ThreadByHand) -> None:
    await thread.post()
    await thread.redis.hset(KEY, "deleting", 1)
    with pytest.raises(ThreadDeleting):
        await thread.post()
    await thread.redis.hdel(KEY, "deleting")


# --- races -------------------------------------------------------------------


async def test_concurrent_posts_make_one_active_run(redis: Redis, settings: Settings) -> None:
    thread = ThreadByHand(redis, settings)
    answers = await asyncio.gather(*(thread.post(str(number)) for number in range(20)), return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, str)]

    assert len(made) == 1
    assert all(isinstance(answer, ThreadBusy) for answer in answers if not isinstance(answer, str))
    assert await thread.due() == set(made)
    await thread.end_all()
