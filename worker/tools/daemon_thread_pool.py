"""A thread pool for tools that are not async.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so a hanging function would keep a
drained worker alive. This pool uses daemon threads: an abandoned call ends with its process.
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
    """An executor with at most `threads_max` daemon threads, started on demand. Further calls wait."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._is_closed = False
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a function in a thread. A call that is cancelled before it starts never runs."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:  # noqa: BLE001 - the waiting caller gets it
                future.set_exception(exc)

        with self._lock:
            if self._is_closed:
                raise RuntimeError("the thread pool is closed")
            self._work.put(work)
            if not self._idle.acquire(blocking=False) and self._threads < self._threads_max:
                self._threads += 1
                threading.Thread(target=self._serve, name=f"tool-{self._threads}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's signature
        """Ends each thread once it is idle. Never waits, since a call may hang."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._threads):
                self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # so that the result is freed before the next call
            self._idle.release()
