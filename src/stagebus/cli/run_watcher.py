"""Follows a run for `stagebus run` and `stagebus tail`, until it ends or the user detaches."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from stagebus.cli.approval_prompt import ApprovalPrompt
from stagebus.cli.error_messages import message_of
from stagebus.cli.exit_codes import EXIT_CODE_BY_EVENT, EXIT_CODE_BY_STATUS, NOTE_BY_FINISH_REASON, ExitCode
from stagebus.cli.profile import Target
from stagebus.cli.prompt import Prompt
from stagebus.cli.renderer import Renderer
from stagebus.client import AsyncRun, AsyncStagebus, ConnectionState, Refused, RunEvent
from stagebus.shared.runtime.json_text import json_line

_WAITING_EVENTS: Final = frozenset({"approval_required", "input_required", "call_deferred"})
# Whole words: `continue` cancels nothing.
_DETACH: Final = ("d", "detach")
_CANCEL: Final = ("c", "cancel")
_CTRL_C_QUESTION: Final = "Ctrl-C: [d]etach and let it run, [c]ancel the run, or Return to go on:"

FindRun = Callable[[AsyncStagebus], Awaitable[AsyncRun]]


class RunWatcher:
    """Follows one run and writes its events to the terminal or pipe."""

    def __init__(self, target: Target, *, as_json: bool, waits: bool, stops_on_interrupt: bool = False) -> None:
        """Args:
        waits: keep following a run that waits for a decision, even without a terminal to ask at.
        stops_on_interrupt: the first Ctrl-C cancels the run without a question, the second one detaches.
        """
        self._target = target
        self._as_json = as_json
        self._stops_on_interrupt = stops_on_interrupt
        self._waits = waits
        self._renderer = Renderer(sys.stdout, sys.stderr, shows_arguments=not Prompt.is_interactive())
        self._prompt = Prompt(self._renderer) if Prompt.is_interactive() else None
        self._approvals: ApprovalPrompt | None = None
        self._run: AsyncRun | None = None
        self._is_polling = False
        self._cursor = ""  # of the last event shown, which may be behind the last one received
        self._interrupted = asyncio.Event()
        self._may_show = asyncio.Event()  # cleared while the Ctrl-C question is open

    def run(self, find_run: FindRun) -> ExitCode:
        """Follow the run that `find_run` creates or names.

        Returns:
            The command's exit code. Ctrl-C and a closed stdout detach from the run, which continues.

        Raises:
            ClientError: there is no such run, or no gateway answers.
        """
        try:
            return asyncio.run(self._watch(find_run))
        except KeyboardInterrupt:  # before the run was created
            return ExitCode.DETACHED
        except BrokenPipeError:
            # Python flushes stdout when it exits, and would print an error then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            with suppress(OSError):
                self._say_detached()
            return ExitCode.DETACHED
        finally:
            with suppress(OSError):
                self._renderer.close()

    async def _watch(self, find_run: FindRun) -> ExitCode:
        target = self._target
        async with AsyncStagebus(
            target.url,
            api_key=target.api_key,
            user=target.user,
            on_lost=self._on_lost,
            on_connection=self._on_connection,
        ) as bus:
            self._run = run = await find_run(bus)
            self._cursor = run.cursor
            self._renderer.note(f"run {run.id}")
            self._may_show.set()
            # If the loop supports no signal handlers, Ctrl-C raises KeyboardInterrupt and detaches.
            with suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._on_interrupt)
            if self._prompt is not None:
                self._approvals = ApprovalPrompt(run, self._renderer, self._prompt, self._may_show)
            approvals = self._approvals
            following = asyncio.create_task(self._follow(run, approvals))
            try:
                return await self._until_end(run, following, approvals)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                if approvals is not None:
                    await approvals.pause()

    def _on_interrupt(self) -> None:
        # An editor handles Ctrl-C itself.
        if self._approvals is None or not self._approvals.is_editing:
            self._interrupted.set()

    async def _until_end(
        self, run: AsyncRun, following: "asyncio.Task[ExitCode]", approvals: ApprovalPrompt | None
    ) -> ExitCode:
        while True:
            interrupted = asyncio.create_task(self._interrupted.wait())
            failing: set[asyncio.Future[None]] = set() if approvals is None else {approvals.failed}
            watched: set[asyncio.Future[Any]] = {following, interrupted, *failing}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            interrupted.cancel()
            if following.done():
                return following.result()
            if approvals is not None and approvals.failed.done():
                approvals.failed.result()
            self._interrupted.clear()
            if self._stops_on_interrupt:
                self._stops_on_interrupt = False
                await self._cancel(run)
            elif approvals is None or not await self._ask_to_continue(run, approvals):
                self._say_detached()
                return ExitCode.DETACHED

    async def _ask_to_continue(self, run: AsyncRun, approvals: ApprovalPrompt) -> bool:
        """Ask what to do after Ctrl-C; False means detach, as do a second Ctrl-C and Ctrl-D."""
        assert self._prompt is not None
        self._may_show.clear()
        await approvals.pause()
        answer = await self._ask_until_known(self._prompt)
        if answer in _DETACH:
            return False
        if answer in _CANCEL:
            await self._cancel(run)
        self._may_show.set()
        approvals.resume()
        return True

    async def _cancel(self, run: AsyncRun) -> None:
        try:
            await run.cancel()
            self._renderer.note("cancel requested; Ctrl-C again leaves without waiting for the end")
        except Refused as exc:
            self._renderer.note(f"not cancelled: {message_of(exc)}", "red")

    async def _ask_until_known(self, prompt: Prompt) -> str:
        """Return one of the words for an answer; that for detaching after a second Ctrl-C and Ctrl-D."""
        while True:
            answering = asyncio.create_task(prompt.ask(_CTRL_C_QUESTION))
            again = asyncio.create_task(self._interrupted.wait())
            await asyncio.wait({answering, again}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            if not answering.done():
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                return _DETACH[0]
            answer = answering.result()
            word = _DETACH[0] if answer is None else answer.lower()
            if word in ("", *_DETACH, *_CANCEL):
                return word
            self._renderer.note("answer with detach (d), cancel (c) or Return", "yellow")

    async def _follow(self, run: AsyncRun, approvals: ApprovalPrompt | None) -> ExitCode:
        end: ExitCode | None = None
        async with aclosing(run.events()) as events:
            async for received in events:
                await self._may_show.wait()
                self._show(received)
                end = EXIT_CODE_BY_EVENT.get(received.event)
                if approvals is not None:
                    approvals.handle(received)
                elif received.event in _WAITING_EVENTS and not self._waits and await self._is_waiting(run, received):
                    return ExitCode.PARKED
        note = NOTE_BY_FINISH_REASON.get(run.state.finish_reason or "")
        if end is ExitCode.SUCCEEDED and note is not None:
            self._renderer.note(f"{note} (finish_reason {run.state.finish_reason})", "yellow")
            end = ExitCode.INCOMPLETE
        if end is None:  # nothing followed the cursor
            status = (await run.get())["status"]
            self._renderer.note(f"{status}; there is nothing after event {run.cursor}")
            end = EXIT_CODE_BY_STATUS.get(status, ExitCode.FAILED)
        return end

    async def _is_waiting(self, run: AsyncRun, pending: RunEvent) -> bool:
        """Return True if the call still waits for a person or a client, and print how to go on."""
        record = await run.get()
        call_id, is_call = pending.data["call_id"], pending.event == "call_deferred"
        waiting = [call for call in record.get("pending_calls", ()) if call["kind"] == "client"]
        if call_id not in {call["call_id"] for call in (waiting if is_call else record["pending_approvals"])}:
            return False
        command = {"input_required": "answer {} {} TEXT", "call_deferred": "result {} {} TEXT"}
        whom = "the result of a call" if is_call else "a person"
        advice = command.get(pending.event, "approve {} {}").format(run.id, call_id)
        self._renderer.note(f"the run waits for {whom}: stagebus {advice}")
        self._renderer.note(f"then continue with: stagebus tail {run.id} --from {run.cursor}")
        return True

    def _show(self, received: RunEvent) -> None:
        if self._as_json:
            sys.stdout.write(json_line(received._asdict()) + "\n")
            sys.stdout.flush()
        else:
            self._renderer.show(received)
        self._cursor = received.id or self._cursor

    def _on_lost(self, cursor: str, wait_s: float) -> None:
        self._renderer.note(f"lost the stream after event {cursor or 0}; reconnecting in {wait_s:.1f} s", "yellow")

    def _on_connection(self, connection: ConnectionState) -> None:
        if connection.waiting_for == "storage":
            self._renderer.note("storage is away; the run continues when it is back", "yellow")
        elif connection.waiting_for is not None:
            is_queued = self._run is not None and self._run.state.status == "queued"
            self._renderer.note(f"waiting for {'a' if is_queued else 'the'} worker", "yellow")
        elif connection.transport == "polling" and not self._is_polling:
            self._renderer.note("the network holds streams back; asking for new events instead", "yellow")
        self._is_polling = connection.transport == "polling"

    def _say_detached(self) -> None:
        if self._run is not None:
            after = f" --from {self._cursor}" if self._cursor else ""
            self._renderer.note(f"detached; the run continues: stagebus tail {self._run.id}{after}")
