"""A child process: started, awaited until it is ready, read line by line, stopped.

It never outlives us. SIGTERM and a grace come first; whoever is left gets SIGKILL, and so
does every child, by the kernel, when we are killed ourselves (Linux alone has that; on
macOS children of a killed parent stay).
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

from stagebus.shared.errors import ChildFailed

LINE_MAX_BYTES: Final = 2**20
# What a child said before it failed, as far as it helps.
LINES_KEPT_MAX: Final = 50
START_MAX_S: Final = 60.0
KILL_MAX_S: Final = 5.0

_PR_SET_PDEATHSIG: Final = 1
# Loaded here, since between fork and exec next to nothing is safe to do.
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, and how to see that it is ready."""

    name: str
    argv: tuple[str, ...]
    ready: re.Pattern[str]  # found in the line that says so; its first group, if it has one, is the answer
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    is_quiet: bool = False  # what it says until it is ready is shown only if it never is
    drains: bool = False  # it has something to finish when it is told to stop
    stop_max_s: float = 5.0  # from SIGTERM to SIGKILL


class Child:
    """One run of a spec. Start it in the main thread: with that thread the kernel's signal comes."""

    def __init__(self, spec: ChildSpec, show: Callable[[str], None]) -> None:
        """`show` gets each line of its output."""
        self.spec = spec
        self._show = show
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[str] | None = None
        self._held: deque[str] = deque(maxlen=LINES_KEPT_MAX)

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's, too."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> str:
        """Start it and wait until it is ready.

        Returns:
            What its ready line says.

        Raises:
            ChildFailed: it ended first, or took longer than `START_MAX_S`; nothing of it is left.
        """
        assert self._process is None
        try:
            # A session of its own: the terminal's Ctrl-C reaches us alone, and we stop the children in order.
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.spec.env},
                pass_fds=self.spec.pass_fds,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
                limit=LINE_MAX_BYTES,
            )
        except OSError as exc:
            raise ChildFailed(f"{self.spec.name} does not start: {exc}") from exc
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
        self._held.clear()
        return answer

    async def wait(self) -> int:
        """Wait for its end; its exit code, or minus the signal that ended it."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, max_s: float | None = None) -> None:
        """SIGTERM, then after `max_s` (the spec's where left out) SIGKILL; returns when it is gone."""
        if self._process is None:
            return
        max_s = self.spec.stop_max_s if max_s is None else max_s
        if max_s > 0:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(max_s):
                    await self._process.wait()
        self.kill()
        with suppress(TimeoutError):  # a process that the kernel itself cannot end
            async with asyncio.timeout(KILL_MAX_S):
                await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def kill(self) -> None:
        """SIGKILL it and whatever it started."""
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
            self._take(raw.decode(errors="replace").rstrip("\r\n"), self._ready)
        code = await process.wait()
        if not self._ready.done():
            self._ready.set_exception(self._failure(f"ended at its start with code {code}"))

    def _take(self, line: str, ready: asyncio.Future[str]) -> None:
        match = None if ready.done() else self.spec.ready.search(line)
        if match is not None:
            ready.set_result(match[1] if match.re.groups else match[0])
        if match is not None:
            return  # said to us
        if ready.done() or not self.spec.is_quiet:
            self._show(line)
        else:
            self._held.append(line)

    def _failure(self, what: str) -> ChildFailed:
        for line in self._held:
            self._show(line)
        return ChildFailed(f"{self.spec.name} {what}")


def _die_with(parent_pid: int) -> Callable[[], None] | None:
    """What a child does between fork and exec so that the kernel ends it with its parent."""
    if _LIBC is None:
        return None
    prctl, kill = _LIBC.prctl, int(signal.SIGKILL)

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, kill)
        # The parent may have died before the call, and would then never be missed.
        if os.getppid() != parent_pid:
            os._exit(1)

    return set_death_signal
