"""A child process: starts it, waits until it is ready, reads its output line by line, and stops it.

A child never outlives this process. It gets SIGTERM and, after a grace period, SIGKILL. If this process is killed, the
kernel kills its children (on Linux only; on macOS the children of a killed parent continue).
Source: prctl(2), PR_SET_PDEATHSIG
"""

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from stagebus.shared.local.process_errors import ChildFailed

LINE_MAX_BYTES: Final = 2**20
# The number of lines kept to explain the failure of a start.
LINES_KEPT_MAX: Final = 50
START_MAX_S: Final = 60.0
KILL_MAX_S: Final = 5.0

_PR_SET_PDEATHSIG: Final = 1
# Loaded here, since very few operations are safe between fork and exec.
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The command of a child process, and how to recognise that it is ready."""

    name: str
    argv: tuple[str, ...]
    ready: re.Pattern[str]  # matches the ready line; its first group, if there is one, is the result of start()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    is_quiet: bool = False  # hides the output of the start unless the start fails
    drains: bool = False  # stopped first, together with the others that drain
    stop_max_s: float = 5.0  # from SIGTERM to SIGKILL


class Child:
    """One process of a spec. Start it in the main thread: the kernel's signal comes when the starting thread ends."""

    def __init__(self, spec: ChildSpec, show: Callable[[str], None]) -> None:
        """`show` is called with each line of output."""
        self.spec = spec
        self._show = show
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[str] | None = None
        self._hidden_lines: deque[str] = deque(maxlen=LINES_KEPT_MAX)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> str:
        """Starts the process and waits until it is ready.

        Returns:
            The first group of the match in the ready line, or the whole match.

        Raises:
            ChildFailed: the process ended first, or was not ready after `START_MAX_S`. It is stopped.
        """
        assert self._process is None
        try:
            # In a session of its own: Ctrl-C in the terminal reaches only this process, which stops the children in order.
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.spec.env},
                pass_fds=self.spec.pass_fds,
                start_new_session=True,
                preexec_fn=_kill_with_parent(os.getpid()),
                limit=LINE_MAX_BYTES,
            )
        except OSError as exc:
            raise ChildFailed(f"{self.spec.name} cannot be started: {exc}") from exc
        self._ready = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(self._process))
        try:
            async with asyncio.timeout(START_MAX_S):
                answer = await self._ready
        except BaseException as exc:
            await self.stop(0)
            if isinstance(exc, TimeoutError):
                raise self._failure(f"is not ready after {START_MAX_S:g} s") from None
            raise
        self._hidden_lines.clear()
        return answer

    async def wait(self) -> int:
        """Waits for the end of the process. Returns its exit code, or the negative number of the signal that ended it."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, max_s: float | None = None) -> None:
        """Sends SIGTERM and, after `max_s` (default: the spec's), SIGKILL. Returns when the process has ended."""
        if self._process is None:
            return
        max_s = self.spec.stop_max_s if max_s is None else max_s
        if max_s > 0:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(max_s):
                    await self._process.wait()
        self.kill()
        with suppress(TimeoutError):  # a process that even the kernel cannot end
            async with asyncio.timeout(KILL_MAX_S):
                await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def kill(self) -> None:
        """Kills the process and its process group."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signum)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert self._ready is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                raw = b"(a line of more than 1 MiB)\n"
            if not raw:
                break
            self._on_line(raw.decode(errors="replace").rstrip("\r\n"), self._ready)
        code = await process.wait()
        if not self._ready.done():
            self._ready.set_exception(self._failure(f"ended at its start with code {code}"))

    def _on_line(self, line: str, ready: asyncio.Future[str]) -> None:
        match = None if ready.done() else self.spec.ready.search(line)
        if match is not None:
            ready.set_result(match[1] if match.re.groups else match[0])
            return
        if ready.done() or not self.spec.is_quiet:
            self._show(line)
        else:
            self._hidden_lines.append(line)

    def _failure(self, message: str) -> ChildFailed:
        for line in self._hidden_lines:
            self._show(line)
        return ChildFailed(f"{self.spec.name} {message}")


def _kill_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """Returns the function to run between fork and exec, with which the kernel kills the child together with its parent."""
    if _LIBC is None:
        return None
    prctl, kill = _LIBC.prctl, int(signal.SIGKILL)

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, kill)
        # The parent may have died before the call; its death would then not be noticed.
        if os.getppid() != parent_pid:
            os._exit(1)

    return set_death_signal
