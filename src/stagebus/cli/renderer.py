"""A run's events as a person at a terminal reads them.

    get_weather {"city":"Paris"}
    get_weather: 50 % found the place
    get_weather: 18 °C, clear sky  (0.3 s)
    In Paris it is 18 °C and clear.
    done in 2.1 s: 2 calls, 412 tokens

The model's text goes to stdout, all else to stderr, so that `stagebus run "…" > answer` holds
the text alone. At a terminal there are colours, and a last line that says what goes on; in a
pipe the same lines are plain. Control characters of models and tools do not reach the terminal.
"""

import os
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from stagebus.cli.formatting import excerpt, money, seconds, tokens
from stagebus.client.event_sequencer import Received
from stagebus.shared.runtime.sanitize import sanitize

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_LINE_ENDS: Final = "\n\t"
_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REFRESHES_A_SECOND: Final = 8


class Screen:
    """Writes a run's events as they come."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._notes = _Notes(err)
        self._is_in_line = False
        self._question = ""
        self._text_stage = ""
        self._calls = 0
        self._name_by_call: dict[str, str] = {}
        self._began_at: int | None = None

    def show(self, received: Received) -> None:
        """Write one event; some need no line."""
        data = received.data
        match received.event:
            case "tool_completion_chunk":
                self._write_text(data["stage_id"], _content(data["tool_results"]))
            case "tool_call" | "tool_progress" | "tool_result":
                self._show_call(received.event, data)
            case "approval_required" | "input_required" | "approval_decided":
                self._show_decision(received.event, data)
            case _:
                self._show_way(received)

    def note(self, line: str, style: str = "dim", *, ends_text: bool = False) -> None:
        """A line beside the text; in a pipe, which has the text alone, it breaks no line of it."""
        self._notes.rest()
        if ends_text or self._question or self._out.isatty():
            self._end_line()
        self._notes.write(sanitize(line), style)
        if self._question:
            self.ask(self._question)

    def ask(self, question: str) -> None:
        """Show a question at whose end the answer is typed; what is noted before that repeats it."""
        self._end_line()
        self._question = question
        self._notes.ask(sanitize(question))
        self._is_in_line = True

    def answered(self, *, is_typed: bool) -> None:
        """The question is over; Return ended its line only where somebody typed it."""
        if self._is_in_line and not is_typed:
            self._notes.end_line()
        self._question, self._is_in_line = "", False

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_line()
        self._notes.rest()

    # --- what happened -------------------------------------------------------

    def _show_way(self, received: Received) -> None:
        event, data = received.event, received.data
        match event:
            case "run_queued":
                self._began_at = data.get("at")
                self._work_on("waiting for a worker")
            case "run_started":
                self._work_on("starting")
            case "stage_started":
                self._work_on(data["stage_id"])
            case "stage_completed":
                self._notes.rest()
            case "stage_restarted":
                self._show_restart(received)
                self._work_on(data["stage_id"])
            case "retry_scheduled":
                by = f" by {data['model']}" if data.get("model") else ""
                self.note(
                    f"{data['retry_of']} is tried again{by} in {data['backoff_s']:.1f} s: {data['reason']}", "yellow"
                )
                self._work_on(f"{data['retry_of']} after a retry")
            case "gap" | "error" | "cancel" | "done":
                self._show_end(event, data)

    def _show_restart(self, received: Received) -> None:
        stage_id = received.data["stage_id"]
        if received.data["discard_from"] >= received.sequence:  # what it has so far stands
            self.note(f"{stage_id} goes on")
            return
        is_void = stage_id == self._text_stage
        void = "; its text above is void" if is_void else ""
        self.note(f"{stage_id} starts again{void}", "yellow", ends_text=is_void)

    def _show_end(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "gap":
                lost = f"Redis lost a part of the run: what came from event {data['earliest']} on comes again"
                self.note(lost, "red", ends_text=True)
            case "error":
                self.note(f"error: {data['error']}", "bold red", ends_text=True)
            case "cancel":
                self.note("cancelled", "yellow", ends_text=True)
            case _:
                took = f" in {seconds(data['at'] - self._began_at)}" if self._began_at and data.get("at") else ""
                calls = f"{self._calls} call{'s' if self._calls > 1 else ''}, " if self._calls else ""
                usage = data.get("usage")
                used = ", ".join(part for part in (tokens(usage) or "0 tokens", money(usage)) if part)
                self.note(f"done{took}: {calls}{used}", "green", ends_text=True)

    def _show_call(self, event: str, data: dict[str, Any]) -> None:
        call_id = data["call_id"]
        if event == "tool_call":
            self._calls += 1
            self._name_by_call[call_id] = data["name"]
            self.note(f"{data['name']} {excerpt(data['arguments'])}", "cyan")
            self._work_on(data["stage_id"], call_id, data["name"])
        elif event == "tool_result":
            mark = " failed" if data.get("is_error") else ""
            same = f"  (as {data['same_as']})" if data.get("same_as") else f"  ({seconds(data.get('duration_ms', 0))})"
            self._notes.end_call(call_id)
            self.note(f"{data['name']}{mark}: {excerpt(data['content'])}{same}", "red" if mark else "dim")
        else:
            share = f"{100 * data['fraction']:.0f} % " if data.get("fraction") is not None else ""
            name = self._name_by_call.get(call_id, "call")
            line = f"{name}: {share}{excerpt(data['message'])}"
            if self._notes.is_terminal:
                self._work_on(data["stage_id"], call_id, line)
            else:
                self.note(line)

    def _show_decision(self, event: str, data: dict[str, Any]) -> None:
        call = data["call_id"]
        match event:
            case "approval_required":
                self._name_by_call[call] = data["name"]
                self.note(
                    f"{data['name']} {excerpt(data['arguments'])} waits to be approved: call {call}", "bold magenta"
                )
            case "input_required":
                self.note(f"the model asks: {excerpt(data['question'])}  (call {call})", "bold magenta")
            case _:
                said = {"approve": "approved", "deny": "denied", "answer": "answered"}[data["decision"]]
                why = ", as nobody decided in time" if data.get("is_expired") else ""
                more = data.get("reason") or data.get("text") or data.get("arguments")
                self.note(
                    f"{self._name_by_call.get(call, 'call')} {call} is {said}{why}{f': {excerpt(more)}' if more else ''}"
                )

    # --- how it is written ---------------------------------------------------

    def _work_on(self, stage_id: str, call_id: str = "", line: str = "") -> None:
        self._notes.work_on(stage_id, call_id, line, is_shown=not self._is_in_line)

    def _write_text(self, stage_id: str, text: str) -> None:
        if not text:
            return
        self._notes.rest()
        if stage_id != self._text_stage:
            self._end_line()
            self._text_stage = stage_id
        self._out.write(sanitize(text, keep=_LINE_ENDS))
        self._out.flush()
        self._is_in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        self._notes.rest()
        if self._is_in_line:
            self._is_in_line = False
            if self._question:
                self._notes.end_line()
                return
            self._out.write("\n")
            self._out.flush()


class _Notes:
    """Lines on stderr; at a terminal also a last one that moves until the next is written."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self.is_terminal = err.isatty()
        self._console: Console | None = None
        self._live: Live | None = None
        self._stage_id = ""
        self._line_by_call: dict[str, str] = {}
        self._since = 0.0
        if self.is_terminal:
            self._console = console_of(err)

    def write(self, line: str, style: str) -> None:
        """One line."""
        self.rest()
        if self._console is None:
            print(line, file=self._err, flush=True)
        else:
            self._console.print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def ask(self, question: str) -> None:
        """A line that does not end."""
        if self._console is not None:
            self._console.print(
                question, style="bold", end=" ", markup=False, highlight=False, emoji=False, soft_wrap=True
            )
            self._err.flush()

    def end_line(self) -> None:
        """End what `ask` began."""
        print(file=self._err, flush=True)

    def work_on(self, stage_id: str, call_id: str, line: str, *, is_shown: bool) -> None:
        """Say in the last line what goes on."""
        if self._console is None:
            return
        if stage_id != self._stage_id:
            self._stage_id, self._since = stage_id, time.monotonic()
            self._line_by_call.clear()
        if call_id:
            self._line_by_call[call_id] = line
        if self._live is None and is_shown:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._moving, console=self._console, transient=True, redirect_stdout=False,
                redirect_stderr=False, refresh_per_second=REFRESHES_A_SECOND,
            )  # fmt: skip
            self._live.start(refresh=True)

    def end_call(self, call_id: str) -> None:
        """The call is no longer under way."""
        self._line_by_call.pop(call_id, None)

    def rest(self) -> None:
        """Take the last line away."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _moving(self) -> "RenderableType":
        from rich.text import Text

        now = time.monotonic()
        frame = _FRAMES[int(now * REFRESHES_A_SECOND) % len(_FRAMES)]
        parts = [self._stage_id, *list(self._line_by_call.values()), seconds(1000 * (now - self._since))]
        return Text(f"{frame} {sanitize('  '.join(parts))}", style="dim", no_wrap=True, overflow="ellipsis")


def console_of(file: TextIO) -> "Console":
    """Rich's console; with NO_COLOR it has no styles at all."""
    from rich.console import Console

    return Console(file=file, color_system=None if os.environ.get("NO_COLOR") else "auto")


def _content(chunk: dict[str, Any]) -> str:
    """The text that a chat completion chunk adds."""
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", []))
