"""One attempt: which of several reasons to stop counts, and that the work has ended when the reason is returned."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import decode_run
from stagebus.shared.errors import Fenced, ModelUnavailable, RunEnded, TailLost
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.shared.storage.run_scripts import Claim
from stagebus.worker.execution import attempt as attempt_module
from stagebus.worker.execution.attempt import Attempt, Interrupt, WorkerDraining
from stagebus.worker.execution.token_budget import TokenBudget

RUN = "01J9ZK3V7Q8E5W2R4T6Y8A0P1A"
LAST = EventId(5204, 7)


@pytest.fixture
def attempt(redis: Redis, settings: Settings) -> Attempt:
    """Its producer does not run, so nothing here reaches Redis."""
    claim = Claim(5204, LAST, tries=0, cancel=False, now=0, record={}, stage_ids=["run"])
    run = decode_run(RUN, {b"status": b"running"})
    assert run is not None
    return Attempt(redis, RUN, "token", claim, settings, budget=TokenBudget(redis, run, claim, settings))


async def forever() -> None:
    await asyncio.Event().wait()


async def end(work: Coroutine[Any, Any, None], attempt: Attempt) -> Interrupt | None:
    """Runs the work and checks that it leaves no task behind."""
    others = asyncio.all_tasks()
    try:
        return await asyncio.wait_for(attempt.work(work), 5)
    finally:
        assert asyncio.all_tasks() == others


async def test_attempt_work_that_ends_by_itself_has_no_interrupt(attempt: Attempt) -> None:
    assert await end(asyncio.sleep(0), attempt) is None


async def test_attempt_raises_the_failure_of_its_work(attempt: Attempt) -> None:
    async def fail() -> None:
        raise ModelUnavailable("overloaded")

    with pytest.raises(ModelUnavailable, match="overloaded"):
        await end(fail(), attempt)


@pytest.mark.parametrize("interrupt", [Interrupt.CANCEL, Interrupt.TIMEOUT])
@pytest.mark.parametrize("is_early", [True, False], ids=["before the work", "in the work"])
async def test_interrupt_stops_the_work_and_is_returned(attempt: Attempt, interrupt: Interrupt, is_early: bool) -> None:
    if is_early:
        attempt.stop(interrupt)
    else:
        asyncio.get_running_loop().call_later(0.01, attempt.stop, interrupt)

    assert await end(forever(), attempt) is interrupt


@pytest.mark.parametrize("first", [Interrupt.CANCEL, Interrupt.TIMEOUT])
async def test_first_of_several_interrupts_counts(attempt: Attempt, first: Interrupt) -> None:
    for interrupt in (first, Interrupt.TIMEOUT, Interrupt.CANCEL, Interrupt.DRAIN):
        attempt.stop(interrupt)

    assert await end(forever(), attempt) is first


async def test_drain_interrupt_outweighs_a_later_cancel(attempt: Attempt) -> None:
    attempt.stop(Interrupt.DRAIN)
    attempt.on_cancel()  # the flag is stored, so the next worker acts on it

    assert await end(forever(), attempt) is Interrupt.DRAIN


async def test_drain_at_a_safe_point_is_a_drain_interrupt(attempt: Attempt) -> None:
    async def stop_at_a_safe_point() -> None:
        raise WorkerDraining("between stages")

    assert await end(stop_at_a_safe_point(), attempt) is Interrupt.DRAIN


@pytest.mark.parametrize("before", [None, Interrupt.CANCEL, Interrupt.TIMEOUT, Interrupt.DRAIN])
async def test_append_failure_outweighs_every_interrupt(attempt: Attempt, before: Interrupt | None) -> None:
    """Nothing more may be written, so the terminal event cannot be written either."""
    if before is not None:
        attempt.stop(before)
    attempt.on_failure(TailLost(RUN, "5204-7"))
    attempt.on_failure(RunEnded(RUN))
    attempt.on_cancel()

    with pytest.raises(TailLost):
        await end(forever(), attempt)


async def test_append_failure_outweighs_the_end_of_the_work(attempt: Attempt) -> None:
    async def end_anyway() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    asyncio.get_running_loop().call_later(0.01, attempt.on_failure, RunEnded(RUN))
    with pytest.raises(RunEnded):
        await end(end_anyway(), attempt)


async def test_work_that_ends_during_its_cancellation_has_ended(attempt: Attempt) -> None:
    """Its result counts, because its tokens were paid for."""

    async def end_anyway() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    asyncio.get_running_loop().call_later(0.01, attempt.on_cancel)
    assert await end(end_anyway(), attempt) is None


async def test_work_has_cleaned_up_when_its_interrupt_is_returned(attempt: Attempt) -> None:
    """The provider's connection is closed, so that no more tokens are paid for."""
    tidied = []

    async def tidy_up() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            tidied.append(True)

    asyncio.get_running_loop().call_later(0.01, attempt.on_cancel)
    await end(tidy_up(), attempt)

    assert tidied


@pytest.mark.parametrize("interrupt", [Interrupt.CANCEL, Interrupt.DRAIN])
async def test_tool_that_ignores_its_cancellation_is_left_behind(
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
    assert await asyncio.wait_for(attempt.work(cling_to_life()), 5) is interrupt
    left = asyncio.all_tasks() - before

    assert len(left) == 1
    assert "left behind" in caplog.text
    free.set()
    await asyncio.wait(left)


async def test_cancelling_the_attempt_cancels_its_work(attempt: Attempt) -> None:
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


async def test_unexpected_cancellation_of_the_work_is_an_error(attempt: Attempt) -> None:
    """A cancellation that escapes from a library must not count as the run's end."""

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
async def test_lost_lease_or_log_tail_stops_the_work(
    attempt: Attempt, tell: Callable[[Attempt], None], failure: type[Exception]
) -> None:
    tell(attempt)

    with pytest.raises(failure):
        await end(forever(), attempt)


async def test_cancel_in_a_lease_renewal_stops_the_work(attempt: Attempt) -> None:
    attempt.on_renewed(Renewal(cancel=False, last_id=LAST), 1.0)
    attempt.on_renewed(Renewal(cancel=True, last_id=LAST), 2.0)

    assert await end(forever(), attempt) is Interrupt.CANCEL
