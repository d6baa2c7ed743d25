"""Waits for conditions that other tasks, threads or processes bring about.

Tests await a condition with a deadline instead of sleeping. When the deadline passes, the AssertionError shows the
last value, so give `until` the value itself (`lambda: hub.open_streams`) rather than a comparison where you can.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

T = TypeVar("T")
Read = Callable[[], Awaitable[T] | T]

TIMEOUT_S = 20.0
POLL_S = 0.01


async def until(read: Read[T], timeout_s: float = TIMEOUT_S) -> T:
    """Calls `read` until its value is truthy and returns that value.

    Args:
        read: returns the value or an awaitable of it.

    Raises:
        AssertionError: the deadline passed.
    """
    return await _until(read, bool, "is truthy", timeout_s)


async def until_equal(read: Read[T], expected: T, timeout_s: float = TIMEOUT_S) -> None:
    """Calls `read` until its value equals `expected`.

    Args:
        read: returns the value or an awaitable of it.

    Raises:
        AssertionError: the deadline passed.
    """
    await _until(read, lambda value: value == expected, f"equals {expected!r}", timeout_s)


def block_until(read: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Does what `until` does, but blocks the thread.

    Raises:
        AssertionError: the deadline passed.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := read()):
        assert time.monotonic() < deadline, _message(read, "is truthy", value, timeout_s)
        time.sleep(POLL_S)
    return value


async def _until(read: Read[T], is_met: Callable[[T], bool], wanted: str, timeout_s: float) -> T:
    value: object = "not read"
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            while True:
                result = read()
                value = await result if inspect.isawaitable(result) else result
                if is_met(cast(T, value)):
                    return cast(T, value)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        if not deadline.expired():
            raise  # `read` itself timed out
        raise AssertionError(_message(read, wanted, value, timeout_s)) from None


def _message(read: Callable[[], object], wanted: str, value: object, timeout_s: float) -> str:
    code = getattr(read, "__code__", None)
    place = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code is not None else ""
    return f"no value that {wanted} within {timeout_s:g} s; the last value was {value!r}{place}"
