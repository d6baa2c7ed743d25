"""A coroutine begun outside of a task: done at once, or gone on with where its rest is awaited."""

import asyncio

import pytest

from gateway.eager import begin


async def test_what_never_waits_is_done_at_once() -> None:
    done = []

    async def act() -> None:
        done.append(1)

    assert begin(act()) is None
    assert done == [1]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_waits_goes_on_where_its_rest_is_awaited(when: str) -> None:
    """Though what it waited for be there before anybody awaits it."""
    first, second = asyncio.Event(), asyncio.Event()
    steps: list[int] = []

    async def act() -> None:
        await first.wait()
        steps.append(1)
        await second.wait()
        steps.append(2)

    rest = begin(act())
    assert rest is not None
    if when == "before":
        first.set()
    asyncio.get_running_loop().call_soon(first.set)
    asyncio.get_running_loop().call_later(0.01, second.set)
    await rest

    assert steps == [1, 2]


@pytest.mark.parametrize("waits", [False, True])
async def test_its_error_comes_where_its_rest_is_awaited(waits: bool) -> None:
    async def act() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ConnectionResetError

    rest = begin(act())
    assert rest is not None
    with pytest.raises(ConnectionResetError):
        await rest


async def test_a_cancel_of_who_awaits_it_ends_it() -> None:
    ended = []

    async def act() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def go_on() -> None:
        rest = begin(act())
        assert rest is not None
        await rest

    task = asyncio.create_task(go_on())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert ended == [1]
