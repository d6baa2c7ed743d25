"""`stagebus chat`: a conversation at the terminal, each message a run of one thread."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from stagebus.cli.error_messages import message_of
from stagebus.cli.exit_codes import ExitCode
from stagebus.cli.output import echo
from stagebus.cli.profile import Target
from stagebus.cli.prompt import Prompt
from stagebus.cli.run_watcher import RunWatcher
from stagebus.client import AsyncRun, AsyncStagebus, ClientError, NotFound, Stagebus, Unreachable

HELP: Final = (
    "/retry asks again, /edit TEXT replaces your last message, /exit or Ctrl-D leaves; Ctrl-C stops an answer; "
    "a line that ends in \\ goes on in the next one"
)
_PROMPT: Final = "> "
_SHOWN_TURNS: Final = 10


@dataclass
class Message:
    """A message to send, and the run that it follows: None for the thread's last one."""

    fields: dict[str, Any]
    parent_run_id: str | None = None


class Chat:
    """One conversation. The thread keeps its history, so that it can be continued from anywhere."""

    def __init__(self, target: Target, thread_id: str, fields: dict[str, Any], *, on_active: Any) -> None:
        """`fields` are those of every run, such as the model."""
        self._target = target
        self._thread_id = thread_id
        self._fields = fields
        self._on_active = on_active
        self._last_run_id = ""

    def run(self) -> ExitCode:
        """Show what was said before, then send each line and show its answer, until the input ends.

        Returns:
            The exit code of the last answer at a pipe; at a terminal success.
        """
        is_terminal = Prompt.is_interactive()
        if is_terminal:
            self._show_history()
        _note(f"thread {self._thread_id}" + ("; /help explains" if is_terminal else ""))
        code = ExitCode.SUCCEEDED
        for line in _read_lines(is_terminal=is_terminal):
            try:
                message = self._message_of(line) if is_terminal else Message({"user_prompt": line})
                if message is None:
                    continue
                code = self._answer(message)
            except Unreachable:
                raise
            except ClientError as exc:
                if not is_terminal:
                    raise
                _note(message_of(exc))
            if code is ExitCode.DETACHED:
                return code
        return ExitCode.SUCCEEDED if is_terminal else code

    def _message_of(self, line: str) -> Message | None:
        """Return the message that a line means; None for a command that has been carried out, or that cannot be."""
        command, _, text = line.partition(" ")
        match command:
            case "/help":
                _note(HELP)
                return None
            case "/retry" | "/edit":
                return self._replacing(command, text.strip())
            case _ if command.startswith("/") and command[1:].isalpha():
                _note(f"there is no command {command}; {HELP}")
                return None
        return Message({"user_prompt": line})

    def _replacing(self, command: str, text: str) -> Message | None:
        """Return the message in place of the last one, on a branch of its own."""
        with self._connect() as bus:
            branch = bus.threads.get(self._thread_id, branch=self._last_run_id)["branch"] if self._last_run_id else None
        turn = branch["turns"][-1] if branch is not None else None
        if turn is None or (command == "/edit" and not text):
            _note("there is no message to replace" if turn is None else "/edit needs the new text")
            return None
        fields = {"user_prompt": text} if command == "/edit" else {"messages": turn["messages"]}
        return Message(fields, turn["parent_run_id"] or "root")

    def _answer(self, message: Message) -> ExitCode:
        """Send a message and show the run that answers it. Ctrl-C cancels the run; its text so far stays in the thread."""

        async def send(bus: AsyncStagebus) -> AsyncRun:
            run = await bus.threads.send(
                self._thread_id,
                parent_run_id=message.parent_run_id,
                on_active=self._on_active,
                **{**self._fields, **message.fields},
            )
            self._last_run_id = run.id
            return run

        return RunWatcher(self._target, as_json=False, waits=True, stops_on_interrupt=True).run(send)

    def _show_history(self) -> None:
        with self._connect() as bus, suppress(NotFound):
            branch = bus.threads.get(self._thread_id)["branch"]
            self._last_run_id = branch["head_run_id"] or ""
            if branch["before"] is not None or len(branch["turns"]) > _SHOWN_TURNS:
                _note("…")
            for turn in branch["turns"][-_SHOWN_TURNS:]:
                for message in [*turn["messages"], *turn["result"]]:
                    _show_message(message)

    def _connect(self) -> Stagebus:
        return Stagebus(self._target.url, api_key=self._target.api_key, user=self._target.user)


def _show_message(message: dict[str, Any]) -> None:
    content = message.get("content")
    if not isinstance(content, str) or not content.strip() or message["role"] not in ("user", "assistant"):
        return
    is_user = message["role"] == "user"
    echo(f"{_PROMPT}{content}" if is_user else content + (" […]" if message.get("partial") else ""), keep="\n\t")


def _note(text: str) -> None:
    echo(text, err=True)


def _read_lines(*, is_terminal: bool) -> Iterator[str]:
    """Yield the messages: lines, those that end in a backslash together with the next one."""
    if is_terminal:
        with suppress(ImportError):  # without it, lines cannot be edited
            import readline  # noqa: F401 - `input` uses it
    parts: list[str] = []
    while (line := _read_line(_PROMPT if is_terminal and not parts else "")) is not None:
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        text = "\n".join([*parts, line]).strip()
        parts.clear()
        if text == "/exit":
            return
        if text:
            yield text


def _read_line(prompt: str) -> str | None:
    """Return the next line; empty after Ctrl-C, None at the end of the input."""
    try:
        return input(prompt) if prompt or sys.stdin.isatty() else _next_line()
    except KeyboardInterrupt:
        _note("")
        return ""
    except EOFError:
        return None


def _next_line() -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
