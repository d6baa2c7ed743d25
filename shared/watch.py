"""`stagebus run` and `stagebus tail`: a run followed at the terminal until it ends or the reader leaves."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Final

import orjson

from shared.client import Client, Followed
from shared.terminal import EXIT_ERROR, RunView, exit_code

EXIT_DETACHED: Final = 130


class Watch:
    """Follows one run and writes it to stdout."""

    def __init__(self, url: str, *, as_json: bool) -> None:
        self._url = url
        self._as_json = as_json
        self._view = RunView(sys.stdout, sys.stderr)
        self._run_id = ""
        self._cursor = ""

    def run(self, find_run: Callable[[Client], Awaitable[str]], cursor: str = "") -> int:
        """Follow the run that `find_run` names, after `cursor`.

        Returns:
            The command's exit code; Ctrl-C and a reader of stdout that left detach, and the run goes on.

        Raises:
            StagebusError: there is no such run, or no gateway.
        """
        try:
            return asyncio.run(self._follow(find_run, cursor))
        except KeyboardInterrupt:
            self._say_detached()
        except BrokenPipeError:
            # Python flushes stdout at its exit, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._say_detached()
        return EXIT_DETACHED

    async def _follow(self, find_run: Callable[[Client], Awaitable[str]], cursor: str) -> int:
        async with Client(self._url, self._on_lost) as client:
            self._run_id, self._cursor = await find_run(client), cursor
            self._view.note(f"run {self._run_id}")
            async with aclosing(client.follow(self._run_id, cursor)) as events:
                code = None
                async for followed in events:
                    self._cursor = followed.id or self._cursor
                    self._show(followed)
                    code = exit_code(followed.event)
            return EXIT_ERROR if code is None else code

    def _show(self, followed: Followed) -> None:
        if self._as_json:
            sys.stdout.write(orjson.dumps(followed._asdict()).decode() + "\n")
            sys.stdout.flush()
        else:
            self._view.show(followed)

    def _on_lost(self, cursor: str, wait_s: float) -> None:
        self._view.note(f"lost the stream after event {cursor or 0}; asking again in {wait_s:.1f} s")

    def _say_detached(self) -> None:
        if self._run_id:
            after = f" --from {self._cursor}" if self._cursor else ""
            self._view.note(f"detached; the run goes on: stagebus tail {self._run_id}{after}")
