"""How many calls of one tool may be at work at once in a worker."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class ThreadStillRunning(Exception):
    """A call was given up while its function runs on in a thread, which nothing can end."""

    def __init__(self, future: Future[Any]) -> None:
        super().__init__("the function runs on in its thread")
        self.future = future


class CallLimiter:
    """So many calls at once, or any number with None; further ones wait, in the order in which they came."""

    def __init__(self, limit: int | None = None) -> None:
        self._free = None if limit is None else asyncio.Semaphore(limit)

    async def acquire(self) -> None:
        """Wait for a slot."""
        if self._free is not None:
            await self._free.acquire()

    def release_after(self, call: asyncio.Task[Any]) -> None:
        """Free the slot once nothing of the call is at work any more: a thread may outlive its task."""
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[Any]) -> None:
        failure = None if call.cancelled() else call.exception()
        if not isinstance(failure, ThreadStillRunning):
            self._release()
            return
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and with it every wait
                loop.call_soon_threadsafe(self._release)

        failure.future.add_done_callback(release)

    def _release(self) -> None:
        if self._free is not None:
            self._free.release()
