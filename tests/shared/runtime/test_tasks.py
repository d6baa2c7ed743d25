"""A task that swallows its first cancel is ended all the same."""

import asyncio

from stagebus.shared.runtime.tasks import cancel_and_wait


async def test_swallowed_cancel_is_given_again() -> None:
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(task), 5)

    assert swallowed.is_set()
    assert task.cancelled()


async def test_task_that_never_ends_is_left_behind() -> None:
    free = asyncio.Event()

    async def immortal() -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(immortal())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(task, timeout_s=0.25), 5)
    assert not task.done()
    free.set()
    await task


async def test_failure_of_a_cancelled_task_is_dropped() -> None:
    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await cancel_and_wait(task)

    assert isinstance(task.exception(), ValueError)
