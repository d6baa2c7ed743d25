"""`stagebus run` and `stagebus tail`: a run followed at the terminal until it ends or the reader leaves."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import orjson

from stagebus.cli.approval_prompt import Asker
from stagebus.cli.exit_codes import EXIT_BY_EVENT, EXIT_BY_STATUS, Exit
from stagebus.cli.profile import Target
from stagebus.cli.prompt import Person
from stagebus.cli.renderer import Screen
from stagebus.client import AsyncRun, AsyncStagebus, Received, Refused

_ASKED: Final = frozenset({"approval_required", "input_required"})
_CTRL_C: Final = "Ctrl-C: [d]etach and let it run, [c]ancel the run, or Return to go on:"

FindRun = Callable[[AsyncStagebus], Awaitable[AsyncRun]]


class Watch:
    """Follows one run and writes it to stdout."""

    def __init__(self, target: Target, *, as_json: bool, waits: bool) -> None:
        """`waits`: go on where a person has to decide, though nobody sits at the terminal."""
        self._target = target
        self._as_json = as_json
        self._waits = waits
        self._screen = Screen(sys.stdout, sys.stderr)
        self._person = Person(self._screen) if Person.is_there() else None
        self._run: AsyncRun | None = None
        self._cursor = ""  # of the last event that was shown, which may be behind the last that came
        self._interrupted = asyncio.Event()
        self._may_go_on = asyncio.Event()  # not while Ctrl-C's question stands

    def run(self, find_run: FindRun) -> Exit:
        """Follow the run that `find_run` makes or names.

        Returns:
            The command's exit code; Ctrl-C and a reader of stdout that left detach, and the run goes on.

        Raises:
            ClientError: there is no such run, or no gateway.
        """
        try:
            return asyncio.run(self._watch(find_run))
        except KeyboardInterrupt:  # before there was a run
            return Exit.DETACHED
        except BrokenPipeError:
            # Python flushes stdout at its exit, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with suppress(OSError):
                self._say_detached()
            return Exit.DETACHED
        finally:
            with suppress(OSError):
                self._screen.close()

    async def _watch(self, find_run: FindRun) -> Exit:
        async with AsyncStagebus(self._target.url, api_key=self._target.api_key, on_lost=self._on_lost) as bus:
            self._run = run = await find_run(bus)
            self._cursor = run.cursor
            self._screen.note(f"run {run.id}")
            self._may_go_on.set()
            # Where a loop has no such handler, Ctrl-C is a KeyboardInterrupt and detaches.
            with suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted.set)
            asker = None if self._person is None else Asker(run, self._screen, self._person)
            following = asyncio.create_task(self._follow(run, asker))
            try:
                return await self._until_end(run, following, asker)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                if asker is not None:
                    await asker.pause()

    async def _until_end(self, run: AsyncRun, following: "asyncio.Task[Exit]", asker: Asker | None) -> Exit:
        while True:
            interrupted = asyncio.create_task(self._interrupted.wait())
            failing: set[asyncio.Future[None]] = set() if asker is None else {asker.failed}
            watched: set[asyncio.Future[Any]] = {following, interrupted, *failing}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            interrupted.cancel()
            if following.done():
                return following.result()
            if asker is not None and asker.failed.done():
                asker.failed.result()
            self._interrupted.clear()
            if asker is None or not await self._goes_on(run, asker):
                self._say_detached()
                return Exit.DETACHED

    async def _goes_on(self, run: AsyncRun, asker: Asker) -> bool:
        """Ask whether to; Ctrl-C once more, and Ctrl-D, mean that one is leaving."""
        assert self._person is not None
        self._may_go_on.clear()
        await asker.pause()
        answering = asyncio.create_task(self._person.ask(_CTRL_C))
        again = asyncio.create_task(self._interrupted.wait())
        await asyncio.wait({answering, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            return False
        answer = answering.result()
        if answer is None or answer[:1].lower() == "d":
            return False
        if answer[:1].lower() == "c":
            try:
                await run.cancel()
                self._screen.note("asked to cancel; Ctrl-C again leaves without waiting for its end")
            except Refused as exc:
                self._screen.note(f"it is not cancelled: {exc}", "red")
        self._may_go_on.set()
        asker.go_on()
        return True

    async def _follow(self, run: AsyncRun, asker: Asker | None) -> Exit:
        end: Exit | None = None
        async with aclosing(run.events()) as events:
            async for received in events:
                await self._may_go_on.wait()
                self._show(received)
                end = EXIT_BY_EVENT.get(received.event)
                if asker is not None:
                    asker.see(received)
                elif received.event in _ASKED and not self._waits and await self._is_waiting(run, received):
                    return Exit.PARKED
        if end is None:  # the cursor was the end
            status = (await run.get())["status"]
            self._screen.note(f"{status}; nothing came after event {run.cursor}")
            end = EXIT_BY_STATUS.get(status, Exit.FAILED)
        return end

    async def _is_waiting(self, run: AsyncRun, asked: Received) -> bool:
        """Whether the call still waits, and nobody is here to decide."""
        record = await run.get()
        call_id = asked.data["call_id"]
        if call_id not in {pending["call_id"] for pending in record["pending_approvals"]}:
            return False
        how = "answer {} {} TEXT" if asked.event == "input_required" else "approve {} {}"
        self._screen.note(f"the run waits for a person: stagebus {how.format(run.id, call_id)}")
        self._screen.note(f"then go on with: stagebus tail {run.id} --from {run.cursor}")
        return True

    def _show(self, received: Received) -> None:
        if self._as_json:
            sys.stdout.write(orjson.dumps(received._asdict()).decode() + "\n")
            sys.stdout.flush()
        else:
            self._screen.show(received)
        self._cursor = received.id or self._cursor

    def _on_lost(self, cursor: str, wait_s: float) -> None:
        self._screen.note(f"lost the stream after event {cursor or 0}; asking again in {wait_s:.1f} s", "yellow")

    def _say_detached(self) -> None:
        if self._run is not None:
            after = f" --from {self._cursor}" if self._cursor else ""
            self._screen.note(f"detached; the run goes on: stagebus tail {self._run.id}{after}")
