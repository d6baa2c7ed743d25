"""Reliable cancellation of tasks."""

import asyncio
from typing import Any, Final

CANCEL_AGAIN_S: Final = 0.1


async def cancel_and_wait(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    """Cancels tasks and waits for their end. Ignores their exceptions.

    Cancels repeatedly: asyncio.wait_for, which redis-py 5.3 uses to send, swallows a cancellation that arrives as it ends
    (Python 3.11), and the task would continue forever.

    Args:
        timeout_s: tasks that run for longer are abandoned.
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
            task.exception()  # retrieved, so that asyncio does not log it
