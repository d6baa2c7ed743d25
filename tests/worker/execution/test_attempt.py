"""One attempt: which of several reasons to stop counts, and that the work has ended when it is told."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.errors import Fenced, ModelUnavailable, RunEnded, TailLost
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.worker.execution import attempt as attempt_module
from stagebus.worker.execution.attempt import Attempt, GivenBack, Interrupt
from stagebus.worker.execution.producer import Producer

RUN = "01J9ZK3V7Q8E5W2R4T6Y8A0P1A"
LAST = EventId(5204, 7)


@pytest.fixture
def attempt(redis: Redis) -> Attempt:
    """Its producer is not at work: nothing here gets as far as Redis."""
    producer = Producer(redis, RUN, 5204, LAST, stage_ids=["run"], ttl_s=60, pending_max_bytes=1000)
    return Attempt(RUN, 5204, producer)


async def forever() -> None:
    await asyncio.Event().wait()


async def end(work: Coroutine[Any, Any, None], attempt: Attempt) -> Interrupt | None:
    """Do the work; nothing of it may be left when that returns."""
    others = asyncio.all_tasks()
    try:
        return await asyncio.wait_for(attempt.work(work), 5)
    finally:
        assert asyncio.all_tasks() == others


async def test_work_that_ends_by_itself_was_not_interrupted(attempt: Attempt) -> None:
    assert await end(asyncio.sleep(0), attempt) is None


async def test_failure_of_the_work_is_its_own(attempt: Attempt) -> None:
    async def fail() -> None:
        raise ModelUnavailable("overloaded")

    with pytest.raises(ModelUnavailable, match="overloaded"):
        await end(fail(), attempt)


@pytest.mark.parametrize("interrupt", [Interrupt.CANCEL, Interrupt.TIMEOUT])
@pytest.mark.parametrize("is_early", [True, False], ids=["before the work", "in the work"])
async def test_interrupt_stops_the_work_and_is_told(attempt: Attempt, interrupt: Interrupt, is_early: bool) -> None:
    if is_early:
        attempt.stop(interrupt)
    else:
        asyncio.get_running_loop().call_later(0.01, attempt.stop, interrupt)

    assert await end(forever(), attempt) is interrupt


@pytest.mark.parametrize("first", [Interrupt.CANCEL, Interrupt.TIMEOUT])
async def test_first_of_several_reasons_stands(attempt: Attempt, first: Interrupt) -> None:
    for interrupt in (first, Interrupt.TIMEOUT, Interrupt.CANCEL, Interrupt.DRAIN):
        attempt.stop(interrupt)

    assert await end(forever(), attempt) is first


async def test_drain_gives_the_run_back(attempt: Attempt) -> None:
    attempt.stop(Interrupt.DRAIN)
    attempt.cancel()  # stored, so whoever takes the run next honours it

    with pytest.raises(GivenBack):
        await end(forever(), attempt)


@pytest.mark.parametrize("before", [None, Interrupt.CANCEL, Interrupt.TIMEOUT, Interrupt.DRAIN])
async def test_failure_outweighs_every_other_reason(attempt: Attempt, before: Interrupt | None) -> None:
    """Nothing more may be written, so not how the run ended either."""
    if before is not None:
        attempt.stop(before)
    attempt.fail(TailLost(RUN, "5204-7"))
    attempt.fail(RunEnded(RUN))
    attempt.cancel()

    with pytest.raises(TailLost):
        await end(forever(), attempt)


async def test_failure_outweighs_the_work_s_own_end(attempt: Attempt) -> None:
    async def end_anyway() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    asyncio.get_running_loop().call_later(0.01, attempt.fail, RunEnded(RUN))
    with pytest.raises(RunEnded):
        await end(end_anyway(), attempt)


async def test_work_that_ends_while_it_is_cancelled_has_ended(attempt: Attempt) -> None:
    """It is paid for."""

    async def end_anyway() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    asyncio.get_running_loop().call_later(0.01, attempt.cancel)
    assert await end(end_anyway(), attempt) is None


async def test_work_has_tidied_up_when_its_interrupt_is_told(attempt: Attempt) -> None:
    """The provider's connection is closed, so that no more tokens are paid for."""
    tidied = []

    async def tidy_up() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            tidied.append(True)

    asyncio.get_running_loop().call_later(0.01, attempt.cancel)
    await end(tidy_up(), attempt)

    assert tidied


@pytest.mark.parametrize("interrupt", [Interrupt.CANCEL, Interrupt.DRAIN])
async def test_tool_that_does_not_heed_its_cancellation_is_left_behind(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, interrupt: Interrupt
) -> None:
    monkeypatch.setattr(attempt_module, "STOP_GRACE_S", 0.05)
    free = asyncio.Event()

    async def cling_to_life() -> None:
        while not free.is_set():
            with suppress(asyncio.CancelledError):
                await free.wait()

    attempt.stop(interrupt)
    before = asyncio.all_tasks()
    try:
        assert await asyncio.wait_for(attempt.work(cling_to_life()), 5) is interrupt
    except GivenBack:
        assert interrupt is Interrupt.DRAIN
    left = asyncio.all_tasks() - before

    assert len(left) == 1
    assert "left behind" in caplog.text
    free.set()
    await asyncio.wait(left)


async def test_whoever_cancels_the_attempt_cancels_its_work(attempt: Attempt) -> None:
    stopped = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            stopped.set()

    working = asyncio.create_task(end(work(), attempt))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert stopped.is_set()


async def test_work_that_was_cancelled_by_nobody_has_not_succeeded(attempt: Attempt) -> None:
    """A stray cancellation out of a library must not pass for the run's end."""

    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled"):
        await end(cancel_itself(), attempt)


@pytest.mark.parametrize(
    ("tell", "failure"),
    [
        (Attempt.on_lease_lost, Fenced),
        (lambda attempt: attempt.on_renewed(Renewal(cancel=False, last_id=EventId(5204, 3)), 1.0), TailLost),
        (lambda attempt: attempt.on_renewed(Renewal(cancel=True, last_id=EventId(1, 1)), 1.0), TailLost),
    ],
    ids=["lost lease", "lost tail", "lost tail and cancel"],
)
async def test_news_of_the_lease_stop_the_work(
    attempt: Attempt, tell: Callable[[Attempt], None], failure: type[Exception]
) -> None:
    attempt.producer.on_failure = attempt.fail
    tell(attempt)

    with pytest.raises(failure):
        await end(forever(), attempt)


async def test_renewal_tells_of_a_cancel(attempt: Attempt) -> None:
    attempt.on_renewed(Renewal(cancel=False, last_id=LAST), 1.0)
    attempt.on_renewed(Renewal(cancel=True, last_id=LAST), 2.0)

    assert await end(forever(), attempt) is Interrupt.CANCEL
