"""Approvals and questions, asked of whoever sits at the terminal as a run meets them."""

import asyncio
from collections import deque
from typing import Any, Final

import orjson

from stagebus.cli.exit_codes import Misused
from stagebus.cli.prompt import Person
from stagebus.cli.renderer import Screen
from stagebus.client import AsyncRun, Conflict, Received, Refused

_APPROVAL: Final = "[a]pprove, [d]eny, [e]dit its arguments, or Return for later:"
_ANSWER: Final = "your answer, or Return for later:"


def parse_arguments(text: str) -> dict[str, Any]:
    """A call's arguments out of JSON text.

    Raises:
        Misused: it is no JSON object.
    """
    try:
        arguments = orjson.loads(text)
    except ValueError as exc:
        raise Misused(f"the arguments are no JSON: {exc}") from exc
    if not isinstance(arguments, dict):
        raise Misused("the arguments have to be a JSON object")
    return arguments


class Asker:
    """Asks about each call that still waits, one after the other, while the run is followed."""

    def __init__(self, run: AsyncRun, screen: Screen, person: Person) -> None:
        self._run = run
        self._screen = screen
        self._person = person
        self._waiting: deque[Received] = deque()
        self._task: asyncio.Task[None] | None = None
        self._asked = ""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # a decision could not be sent

    def see(self, received: Received) -> None:
        """An event of the run came."""
        match received.event:
            case "approval_required" | "input_required":
                # After a gap it comes again.
                if received.data["call_id"] not in {asked.data["call_id"] for asked in self._waiting}:
                    self._waiting.append(received)
                self.go_on()
            case "approval_decided":
                call_id = received.data["call_id"]
                self._waiting = deque(asked for asked in self._waiting if asked.data["call_id"] != call_id)
                if self._asked == call_id and self._task is not None:
                    self._task.cancel()
                    self._task = None
                    self.go_on()
            case "done" | "cancel" | "error":
                self._waiting.clear()
                if self._task is not None:
                    self._task.cancel()

    def go_on(self) -> None:
        """Ask what there is to ask, if that is not being done."""
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._ask_all())
            self._task.add_done_callback(self._look)

    async def pause(self) -> None:
        """Take a question back that stands; `go_on` asks it again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _look(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(failure)

    async def _ask_all(self) -> None:
        # A log tells of calls that were decided long ago; the run's record knows which are open.
        pending = {call["call_id"] for call in (await self._run.get())["pending_approvals"]}
        while self._waiting:
            asked = self._waiting[0]
            self._asked = asked.data["call_id"]
            if self._asked in pending:
                await self._ask(asked)
            if self._waiting and self._waiting[0] is asked:
                self._waiting.popleft()
            self._asked = ""

    async def _ask(self, asked: Received) -> None:
        ask = self._ask_question if asked.event == "input_required" else self._ask_approval
        try:
            is_decided = await ask(asked.data["call_id"], asked.data)
        except Refused as exc:
            self._screen.note(f"{'too late' if isinstance(exc, Conflict) else 'not decided'}: {exc}", "yellow")
            return
        if not is_decided:
            how = "answer {} {} TEXT" if asked.event == "input_required" else "approve {} {}"
            self._screen.note(f"it waits; later: stagebus {how.format(self._run.id, asked.data['call_id'])}")

    async def _ask_question(self, call_id: str, _: dict[str, Any]) -> bool:
        text = await self._person.ask(_ANSWER)
        if text:
            await self._run.answer(call_id, text)
        return bool(text)

    async def _ask_approval(self, call_id: str, data: dict[str, Any]) -> bool:
        while True:
            answer = (await self._person.ask(f"{data['name']}: {_APPROVAL}") or "").lower()[:1]
            match answer:
                case "":
                    return False
                case "a" | "y":
                    await self._run.approve(call_id)
                    return True
                case "d" | "n":
                    reason = await self._person.ask("why, for the model; Return for no reason:")
                    await self._run.deny(call_id, reason or None)
                    return True
                case "e":
                    text = await self._person.ask("the arguments, as JSON:")
                    try:
                        await self._run.approve(call_id, parse_arguments(text or ""))
                    except Misused as exc:
                        self._screen.note(str(exc), "red")
                        continue
                    return True
