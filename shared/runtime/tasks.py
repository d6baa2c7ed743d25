"""Reliable cancellation of tasks."""

import asyncio
import math
from typing import Any, Final

CANCEL_AGAIN_S: Final = 1.0


async def cancel_and_wait(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    """Cancels tasks and waits for their end. Ignores their exceptions.

    Cancels repeatedly: Python 3.11's asyncio.wait_for, which libraries use, swallows a cancellation that arrives as it
    ends, and the task would continue forever. In between a task has time for its own last commands.

    Args:
        timeout_s: tasks that run for longer are abandoned.
    """
    loop = asyncio.get_running_loop()
    deadline = math.inf if timeout_s is None else loop.time() + timeout_s
    pending = {task for task in tasks if not task.done()}
    while pending and (left_s := deadline - loop.time()) > 0:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=min(CANCEL_AGAIN_S, left_s))
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it
