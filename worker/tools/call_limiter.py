"""Limits the concurrent calls of a tool in a worker."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class ThreadStillRunning(Exception):
    """A call was abandoned, but its function still runs in a thread, which cannot be stopped."""

    def __init__(self, future: Future[Any]) -> None:
        super().__init__("the function still runs in its thread")
        self.future = future


class CallLimiter:
    """Allows `limit` concurrent calls, or any number if it is None. Further calls wait in order."""

    def __init__(self, limit: int | None = None) -> None:
        self._free = None if limit is None else asyncio.Semaphore(limit)

    async def acquire(self) -> None:
        """Waits until a call may start."""
        if self._free is not None:
            await self._free.acquire()

    def release_after(self, call: asyncio.Task[Any]) -> None:
        """Releases the call's place when it has ended. A thread may outlive the task of its call; then its end counts."""
        call.add_done_callback(self._on_end)

    def _on_end(self, call: asyncio.Task[Any]) -> None:
        failure = None if call.cancelled() else call.exception()
        if not isinstance(failure, ThreadStillRunning):
            self._release()
            return
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, so no call waits
                loop.call_soon_threadsafe(self._release)

        failure.future.add_done_callback(release)

    def _release(self) -> None:
        if self._free is not None:
            self._free.release()
