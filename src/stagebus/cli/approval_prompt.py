"""Asks the person at the terminal for approvals and answers while a run is followed.

The person sees the whole arguments, page by page, before the question, and only a whole word approves: `abort` and `any`
are no answers.
"""

import asyncio
import shutil
from collections import deque
from typing import Any, Final

from stagebus.cli.approval_arguments import argument_lines, parse_arguments
from stagebus.cli.editor import edit
from stagebus.cli.error_messages import message_of
from stagebus.cli.exit_codes import UsageError
from stagebus.cli.prompt import Prompt
from stagebus.cli.renderer import Renderer
from stagebus.client import AsyncRun, Conflict, Refused, RunEvent
from stagebus.shared.runtime.json_text import pretty_json

_APPROVAL: Final = "[a]pprove, [d]eny, [e]dit the arguments, or Return for later:"
_ANSWER: Final = "your answer, or Return for later:"
_UNKNOWN: Final = "nothing was decided: answer with approve (a, yes, y), deny (d, no, n), edit (e) or Return"
# Lines of the window that stay free: the call's name, and the question.
_FREE_LINES: Final = 4
_PAGE_MIN_LINES: Final = 4


class ApprovalPrompt:
    """Asks about each pending call, one after the other, while the run is followed.

    Attributes:
        failed: raises what stopped the prompt when a decision could not be sent.
        is_editing: an editor has the terminal.
    """

    def __init__(self, run: AsyncRun, renderer: Renderer, prompt: Prompt, may_show: asyncio.Event) -> None:
        """`may_show` is cleared while an editor has the terminal."""
        self.is_editing = False
        self._may_show = may_show
        self._run = run
        self._renderer = renderer
        self._prompt = prompt
        self._pending: deque[RunEvent] = deque()
        self._task: asyncio.Task[None] | None = None
        self._asked_call_id = ""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def handle(self, received: RunEvent) -> None:
        """Add or remove pending calls according to an event of the run."""
        match received.event:
            case "approval_required" | "input_required":
                # After a gap the same event arrives again.
                if received.data["call_id"] not in {pending.data["call_id"] for pending in self._pending}:
                    self._pending.append(received)
                self.resume()
            case "approval_decided":
                call_id = received.data["call_id"]
                self._pending = deque(pending for pending in self._pending if pending.data["call_id"] != call_id)
                if self._asked_call_id == call_id and self._task is not None:
                    self._task.cancel()
                    self._task = None
                    self.resume()
            case "done" | "cancel" | "error":
                self._pending.clear()
                if self._task is not None:
                    self._task.cancel()

    def resume(self) -> None:
        """Ask about the pending calls, unless that is under way already."""
        if self._pending and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._ask_all())
            self._task.add_done_callback(self._report_failure)

    async def pause(self) -> None:
        """Withdraw an open question; `resume` asks it again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _report_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(failure)

    async def _ask_all(self) -> None:
        # The log also holds calls that were decided long ago; the run's record says which are still open.
        open_call_ids = {call["call_id"] for call in (await self._run.get())["pending_approvals"]}
        while self._pending:
            pending = self._pending[0]
            self._asked_call_id = pending.data["call_id"]
            if self._asked_call_id in open_call_ids:
                await self._ask(pending)
            if self._pending and self._pending[0] is pending:
                self._pending.popleft()
            self._asked_call_id = ""

    async def _ask(self, pending: RunEvent) -> None:
        ask = self._ask_question if pending.event == "input_required" else self._ask_approval
        try:
            is_decided = await ask(pending.data["call_id"], pending.data)
        except Refused as exc:
            self._renderer.note(
                f"{'too late' if isinstance(exc, Conflict) else 'not decided'}: {message_of(exc)}", "yellow"
            )
            return
        if not is_decided:
            command = "answer {} {} TEXT" if pending.event == "input_required" else "approve {} {}"
            self._renderer.note(
                f"the call stays pending; later: stagebus {command.format(self._run.id, pending.data['call_id'])}"
            )

    async def _ask_question(self, call_id: str, _: dict[str, Any]) -> bool:
        text = await self._prompt.ask(_ANSWER)
        if text:
            await self._run.answer(call_id, text)
        return bool(text)

    async def _ask_approval(self, call_id: str, data: dict[str, Any]) -> bool:
        text, changed = data["arguments"], None
        if not await self._show_arguments(text):
            return False
        while True:
            match (await self._prompt.ask(f"{data['name']}: {_APPROVAL}") or "").lower():
                case "":
                    return False
                case "a" | "approve" | "y" | "yes":
                    await self._run.approve(call_id, changed)
                    return True
                case "d" | "deny" | "n" | "no":
                    reason = await self._prompt.ask("reason for the model, or Return for none:")
                    await self._run.deny(call_id, reason or None)
                    return True
                case "e" | "edit":
                    try:
                        edited = await self._edit(pretty_json(text))
                        changed = parse_arguments(edited)
                    except UsageError as exc:
                        self._renderer.note(str(exc), "red")
                        continue
                    text = edited
                    self._renderer.note("the call would run with these arguments:", "")
                    if not await self._show_arguments(text):
                        return False
                case _:
                    self._renderer.note(_UNKNOWN, "yellow")

    async def _show_arguments(self, text: str) -> bool:
        """Show the arguments, one page of the window at a time. Return False if the person stops before the end."""
        columns, rows = shutil.get_terminal_size()
        lines = argument_lines(text, columns)
        page = max(rows - _FREE_LINES, _PAGE_MIN_LINES)
        for start in range(0, len(lines), page):
            if (
                start
                and await self._prompt.ask(f"{len(lines) - start} more lines; Return shows them, l is later:") != ""
            ):
                return False
            for line in lines[start : start + page]:
                self._renderer.note(line, "")
        return True

    async def _edit(self, text: str) -> str:
        self.is_editing = True
        self._may_show.clear()
        self._renderer.pause()
        try:
            return await edit(text, ".json")
        finally:
            self.is_editing = False
            self._may_show.set()
