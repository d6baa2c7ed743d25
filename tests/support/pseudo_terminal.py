"""Runs a program in a pseudo-terminal; tests type into it and read its output."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C, CTRL_D = "\x03", "\x04"


class PseudoTerminal:
    """Runs one program; a context manager."""

    def __init__(self, args: list[str], env: Mapping[str, str] | None = None, columns: int = 120) -> None:
        self._args = args
        # A size in the environment would take precedence over the terminal's.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._env = {**inherited, "TERM": "xterm-256color", **(env or {})}
        self._columns = columns
        self.raw = ""

    async def __aenter__(self) -> Self:
        self._fd, inside = pty.openpty()
        self.resize(self._columns)
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns immediately
            self._args, stdin=inside, stdout=inside, stderr=inside, env=self._env, cwd=ROOT, start_new_session=True,
            # Makes this its controlling terminal, so that Ctrl-C sends it a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )  # fmt: skip
        os.close(inside)
        os.set_blocking(self._fd, False)
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._fd)

    @property
    def text(self) -> str:
        """The output without control sequences."""
        return CONTROL.sub("", self.raw).replace("\r\n", "\n")

    def resize(self, columns: int) -> None:
        """Set the width of the window; the program gets SIGWINCH."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Type keys; a line ends with \\n."""
        os.write(self._fd, keys.encode())

    async def until(self, text: str, times: int = 1, timeout_s: float = 20) -> None:
        """Wait until the output contains `text` so many times."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.text.count(text) < times:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {self.text!r}") from None

    async def exit_code(self, timeout_s: float = 20) -> int:
        """Waits for the end of the process and returns its exit code."""
        await until(lambda: self._process.poll() is not None, timeout_s)
        self._read()
        return self._process.wait()

    def _read(self) -> None:
        try:
            while data := os.read(self._fd, 65536):
                self.raw += data.decode(errors="replace")
        except (BlockingIOError, OSError):  # nothing more now; it has ended
            pass
        self._changed.set()
        if self._process.poll() is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
