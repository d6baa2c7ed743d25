"""Runs the functions of client tools beside the stream of events, in tasks of the event loop."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

from stagebus.client.open_calls import RENEW_S, CallOutcome, outcome_of_error, outcome_of_value


class AsyncCallTasks:
    """The tasks of one stream; they end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start work in the background."""

        async def run() -> None:
            await work(*args)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_function(
    function: Callable[..., Any], arguments: str, renew: Callable[[], Awaitable[object]]
) -> CallOutcome:
    """Call a function with JSON arguments, and `renew` from time to time until it returns. A plain one gets a thread."""
    task = asyncio.ensure_future(_call(function, arguments))
    try:
        while not (await asyncio.wait({task}, timeout=RENEW_S))[0]:
            await renew()
    finally:
        task.cancel()
    return await task


async def _call(function: Callable[..., Any], arguments: str) -> CallOutcome:
    try:
        named = json.loads(arguments or "{}")
        if inspect.iscoroutinefunction(function):
            return outcome_of_value(await function(**named))
        return outcome_of_value(await asyncio.to_thread(function, **named))
    except Exception as exc:  # noqa: BLE001 - the model gets it
        return outcome_of_error(exc)
