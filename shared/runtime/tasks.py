"""Ending tasks for certain."""

import asyncio
from typing import Any, Final

CANCEL_AGAIN_S: Final = 0.1


async def cancel_and_wait(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    """Cancel tasks and wait for their end; what they raise is dropped.

    Once may not do: asyncio.wait_for, by which redis-py 5.3 sends, swallows a cancel that
    comes as it ends (Python 3.11), and the task would go on for ever.

    Args:
        timeout_s: tasks that go on for longer are left behind.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    pending = {task for task in tasks if not task.done()}
    while pending and (deadline is None or loop.time() < deadline):
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # looked at, so that asyncio does not log it as never retrieved
