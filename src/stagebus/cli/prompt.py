"""Whoever sits at the terminal, and is asked one thing at a time."""

import asyncio
import os
import sys
from typing import Final

from stagebus.cli.renderer import Screen

LINE_MAX_BYTES: Final = 4096


class Person:
    """Asks at the screen, and reads what is typed."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    @staticmethod
    def is_there() -> bool:
        """Whether anybody can be asked: both what is read and what is shown are a terminal."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    async def ask(self, question: str) -> str | None:
        """The line that is typed, without the spaces around it; None at Ctrl-D.

        What was typed before the question stood is no answer to it.
        """
        import termios

        loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
        typed: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            loop.remove_reader(fd)
            if not typed.done():
                typed.set_result(os.read(fd, LINE_MAX_BYTES))

        termios.tcflush(fd, termios.TCIFLUSH)
        self._screen.ask(question)
        loop.add_reader(fd, read)
        line = b""
        try:
            line = await typed
        finally:
            loop.remove_reader(fd)
            self._screen.answered(is_typed=line.endswith(b"\n"))
        return line.decode(errors="replace").strip() if line else None
