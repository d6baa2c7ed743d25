import asyncio
import contextvars
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.worker.tools.function_tool import tool
from stagebus.worker.tools.registry import Tool, ToolRegistry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply

CONTEXT = ToolContext(run_id="r", call_id="c")
Make = Callable[..., Tool]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """A tool out of any function."""
    registries = []

    def make(function: Callable[..., Any], **settings: object) -> Tool:
        registries.append(ToolRegistry([function], Settings(**{"tool_timeout_s": 5, **settings})))
        return registries[-1].get(registries[-1].names()[0])

    yield make
    for registry in registries:
        await registry.aclose()


async def test_async_function_is_awaited_in_the_loop(make: Make) -> None:
    async def f(x: int) -> dict:
        await asyncio.sleep(0)
        return {"x": x, "here": threading.current_thread() is threading.main_thread()}

    assert await make(f).call('{"x": 1}', CONTEXT) == ToolReply('{"x":1,"here":true}')


async def test_plain_function_runs_in_a_thread_with_its_context(make: Make) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")

    def f() -> list:
        return [variable.get(), threading.current_thread().name]

    assert await make(f).call("", CONTEXT) == ToolReply('["set","tool-1"]')


async def test_plain_functions_run_concurrently_in_the_tool_threads(make: Make) -> None:
    meeting = threading.Barrier(2)

    def f() -> str:
        meeting.wait(5)
        return threading.current_thread().name

    made = make(f)
    replies = await asyncio.gather(made.call("", CONTEXT), made.call("", CONTEXT))
    assert {reply.content for reply in replies} == {"tool-1", "tool-2"}


async def test_awaitable_of_a_plain_function_is_awaited(make: Make) -> None:
    async def answer() -> int:
        return 42

    def f() -> Any:
        return answer()

    class Callable:
        __name__ = "callable"

        async def __call__(self, x: int) -> int:
            return x

    assert await make(f).call("", CONTEXT) == ToolReply("42")
    assert await make(Callable()).call('{"x": 3}', CONTEXT) == ToolReply("3")


async def test_bad_arguments_never_reach_the_function(make: Make) -> None:
    def f(x: int) -> None:
        raise AssertionError

    reply = await make(f).call('{"x": "y"}', CONTEXT)
    assert reply.is_error
    assert "- x: Input should be a valid integer" in reply.content


class Panic(BaseException):
    """As that of a library in Rust."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no luck"),
        TimeoutError("no luck"),
        SystemExit("no luck"),
        KeyboardInterrupt("no luck"),
        Panic("no luck"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_exception_is_a_reply_without_traceback(
    make: Make, caplog, error: BaseException, *, is_async: bool
) -> None:
    def plain() -> None:
        raise error

    async def awaited() -> None:
        raise error

    with caplog.at_level(logging.WARNING):
        reply = await make(awaited if is_async else plain).call("", CONTEXT)
    name = "awaited" if is_async else "plain"
    assert reply == ToolReply(f"{name} failed: {type(error).__name__}: no luck", is_error=True)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("is_async", [True, False])
async def test_end_of_an_iterator_is_an_exception_like_others(make: Make, *, is_async: bool) -> None:
    """`next` of nothing: asyncio's futures take any exception but this one (Python 3.11)."""

    def plain() -> None:
        next(iter(()))

    async def awaited() -> None:
        next(iter(()))

    reply = await asyncio.wait_for(make(awaited if is_async else plain).call("", CONTEXT), 5)
    assert reply.is_error
    assert "StopIteration" in reply.content


async def test_key_in_an_exception_reaches_no_model(make: Make) -> None:
    """HTTP clients put the URL of a failed request into their exceptions."""

    def f() -> None:
        raise ValueError("401 for https://user:password@shop.example/?api_key=planted")

    content = "f failed: ValueError: 401 for https://***@shop.example/?api_key=***"
    assert await make(f).call("", CONTEXT) == ToolReply(content, is_error=True)


async def test_tools_own_words_are_the_reply(make: Make) -> None:
    def f() -> None:
        raise ToolError("the shop is closed")

    assert await make(f).call("", CONTEXT) == ToolReply("f: the shop is closed", is_error=True)


async def test_exception_without_words_has_its_type(make: Make) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def f() -> None:
        raise Mute

    assert (await make(f).call("", CONTEXT)).content == "f failed: Mute"


async def test_long_error_is_cut(make: Make) -> None:
    def f() -> None:
        raise ValueError("x" * 10_000)

    assert len((await make(f, tool_result_max_bytes=300).call("", CONTEXT)).content.encode()) == 300


async def test_tool_timeout_is_a_reply_that_names_the_limit(make: Make) -> None:
    gate = threading.Event()

    async def awaited() -> None:
        await asyncio.Event().wait()

    def plain() -> None:
        gate.wait(10)

    for f in (awaited, plain):
        reply = await make(f, tool_timeout_s=0.05).call("", CONTEXT)
        assert reply == ToolReply(f"{f.__name__} gave no result within its limit of 0.05 s.", is_error=True)
    gate.set()


async def test_tools_own_limit_comes_first(make: Make) -> None:
    @tool(timeout_s=0.05)
    async def f() -> None:
        await asyncio.Event().wait()

    assert "0.05 s" in (await make(f, tool_timeout_s=100).call("", CONTEXT)).content


async def test_tool_that_will_not_end_is_left_behind(make: Make) -> None:
    released = asyncio.Event()

    async def f() -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    started = time.monotonic()
    reply = await make(f, tool_timeout_s=0.05).call("", CONTEXT)
    assert reply.is_error
    assert time.monotonic() - started < 3
    released.set()
    await asyncio.sleep(0)


async def test_cancel_goes_through_to_the_tool(make: Make) -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def f() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(make(f).call("", CONTEXT))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_cancel_does_not_wait_for_a_thread(make: Make) -> None:
    running, gate = threading.Event(), threading.Event()

    def f() -> None:
        running.set()
        gate.wait(10)

    task = asyncio.create_task(make(f).call("", CONTEXT))
    await asyncio.to_thread(running.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    gate.set()


async def test_tool_that_cancels_itself_is_a_failed_call(make: Make) -> None:
    async def f() -> None:
        raise asyncio.CancelledError

    assert await make(f).call("", CONTEXT) == ToolReply("f was cancelled.", is_error=True)


async def test_result_is_cut_at_the_limit(make: Make) -> None:
    def f() -> str:
        return "x" * 1000

    content = (await make(f, tool_result_max_bytes=256).call("", CONTEXT)).content
    assert content.endswith("… [cut: 1000 bytes, limit 256]")
    assert len(content.encode()) == 256


async def test_exit_of_a_tool_ends_nothing_else(make: Make) -> None:
    def f() -> None:
        sys.exit(1)

    assert (await make(f).call("", CONTEXT)).is_error
    assert (await make(f).call("", CONTEXT)).is_error


# --- concurrency -------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_no_more_calls_at_once_than_the_tool_bears(make: Make, *, is_async: bool) -> None:
    at_work, most = 0, 0
    lock = threading.Lock()

    def enter(change: int) -> None:
        nonlocal at_work, most
        with lock:
            at_work += change
            most = max(most, at_work)

    async def awaited() -> None:
        enter(1)
        await asyncio.sleep(0.01)
        enter(-1)

    def plain() -> None:
        enter(1)
        time.sleep(0.01)
        enter(-1)

    made = make(tool(concurrency=2)(awaited if is_async else plain))
    replies = await asyncio.gather(*(made.call("", CONTEXT) for _ in range(7)))
    assert most == 2
    assert not any(reply.is_error for reply in replies)


async def test_wait_for_a_slot_is_not_the_tools_time(make: Make) -> None:
    @tool(concurrency=1, timeout_s=0.2)
    async def f() -> None:
        await asyncio.sleep(0.12)

    made = make(f)
    replies = await asyncio.gather(*(made.call("", CONTEXT) for _ in range(3)))
    assert [reply.is_error for reply in replies] == [False] * 3


async def test_abandoned_call_keeps_its_slot_until_its_thread_ends(make: Make) -> None:
    """The thread still uses what the limit protects."""
    gate = threading.Event()

    @tool(concurrency=1, timeout_s=0.05)
    def f(x: int) -> int:
        if x == 0:
            gate.wait(10)
        return x

    made = make(f)
    assert (await made.call('{"x": 0}', CONTEXT)).is_error
    waiting = asyncio.create_task(made.call('{"x": 1}', CONTEXT))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    gate.set()
    assert await waiting == ToolReply("1")


async def test_cancelled_wait_takes_no_slot(make: Make) -> None:
    gate = asyncio.Event()

    @tool(concurrency=1)
    async def f() -> None:
        await gate.wait()

    made = make(f)
    first, second = (asyncio.create_task(made.call("", CONTEXT)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    gate.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert not (await made.call("", CONTEXT)).is_error


async def test_tools_own_result_limit_comes_first(make: Make) -> None:
    @tool(max_result_bytes=300)
    def f() -> str:
        return "x" * 1000

    assert len((await make(f, tool_result_max_bytes=256).call("", CONTEXT)).content.encode()) == 300
