"""Processes forked from a server that has everything imported.

The imports of a worker take 2 s of CPU and those of a gateway 1 s, hundreds of times in a run of the tests. A forked
process has its own id, memory, signals, environment and output, as one that `subprocess` starts.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded_modules"])
FORKED: Final = {"stagebus.gateway", "stagebus.worker", "stagebus.worker.demo.demo_model"}


class ForkedProcess:
    """The part of `subprocess.Popen` that the tests use."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], folder: Path, log_path: Path) -> None:
        """Starts `python` with these arguments, which are `-m` and a module of `FORKED`, in a folder."""
        self._process = _CONTEXT.Process(target=_run, args=(list(args), dict(env), str(folder), str(log_path)))
        self._process.start()
        atexit.register(self._end)  # before multiprocessing waits for it

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None if the process runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Waits for the end and returns the exit code."""
        self._process.join()
        atexit.unregister(self._end)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def _end(self) -> None:
        self._process.kill()


def can_fork(args: Sequence[str], env: Mapping[str, str]) -> bool:
    """Returns true if a process with these arguments may be forked. One that starts others is started as users start it."""
    return (
        args[:1] == ["-m"]
        and args[1] in FORKED
        and "--workers" not in args
        and all(os.environ.get(name) == value for name, value in env.items() if name.startswith(("PYTHON", "LD_")))
    )


def _run(args: list[str], env: dict[str, str], folder: str, log_path: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    output = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, sys.argv = args[1], [args[1], *args[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
