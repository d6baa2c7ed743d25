"""Reads answers from the terminal, one question at a time."""

import asyncio
import os
import sys
from typing import Final

from stagebus.cli.renderer import Renderer

LINE_MAX_BYTES: Final = 4096


class Prompt:
    """Asks through the renderer and reads the line that is typed."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    @staticmethod
    def is_interactive() -> bool:
        """Return True if both input and messages are a terminal."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    async def ask(self, question: str) -> str | None:
        """Show a question and return the typed line, stripped; None for Ctrl-D.

        Input from before the question is discarded: it was not meant as an answer.
        """
        import termios

        loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
        typed: asyncio.Future[bytes] = loop.create_future()

        def read() -> None:
            loop.remove_reader(fd)
            if not typed.done():
                typed.set_result(os.read(fd, LINE_MAX_BYTES))

        termios.tcflush(fd, termios.TCIFLUSH)
        self._renderer.show_question(question)
        loop.add_reader(fd, read)
        line = b""
        try:
            line = await typed
        finally:
            loop.remove_reader(fd)
            self._renderer.close_question(is_typed=line.endswith(b"\n"))
        return line.decode(errors="replace").strip() if line else None
