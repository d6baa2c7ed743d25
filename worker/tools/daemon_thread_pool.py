"""Threads for tools that are plain functions.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so
one function that hangs would keep a drained worker alive. These are daemon threads: a
call that was given up dies with its process.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Work = Callable[[], None]


class DaemonThreadPool(Executor):
    """At most so many threads, each begun when it is first needed. Further calls wait for one."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._is_closed = False
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread. Cancelled before its turn, it never runs."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:  # noqa: BLE001 - it belongs to whoever waits for the result
                future.set_exception(exc)

        with self._lock:
            if self._is_closed:
                raise RuntimeError("the tools' threads are closed")
            self._work.put(work)
            if not self._idle.acquire(blocking=False) and self._threads < self._threads_max:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"tool-{self._threads}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's signature
        """End each thread once it is idle. Never waits: a call may hang for good."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._threads):
                self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # a result must not live until the next call
            self._idle.release()
