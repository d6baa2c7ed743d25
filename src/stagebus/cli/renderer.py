"""Renders a run's events as text for a person at a terminal.

    get_weather {"city":"Paris"}
    get_weather: 50 % found the place
    get_weather: 18 °C, clear sky  (0.3 s)
    In Paris it is 18 °C and clear.
    done in 2.1 s: 2 calls, 412 tokens

The model's text goes to stdout and everything else to stderr, so that `stagebus run "…" > answer`
contains only the text. A terminal also gets colours and a status line at the bottom; a pipe gets
the same lines without them. Control characters from models and tools never reach the terminal.
"""

import os
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from stagebus.cli.approval_arguments import argument_lines
from stagebus.cli.error_messages import in_plain_words
from stagebus.cli.formatting import excerpt, money, seconds, tokens
from stagebus.client.event_sequencer import RunEvent
from stagebus.shared.domain.requests import prompt_excerpt
from stagebus.shared.runtime.sanitize import reveal, sanitize

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_LINE_ENDS: Final = "\n\t"
_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REFRESHES_A_SECOND: Final = 8


class Renderer:
    """Writes a run's events as they arrive."""

    def __init__(self, out: TextIO, err: TextIO, *, shows_arguments: bool = True) -> None:
        """`shows_arguments`: show what a call that waits would do; a prompt shows that itself, page by page."""
        self._shows_arguments = shows_arguments
        self._out = out
        self._status = _StatusLines(err)
        self._is_line_open = False
        self._question = ""
        self._text_stage = ""
        self._call_count = 0
        self._name_by_call: dict[str, str] = {}
        self._queued_at: int | None = None

    def show(self, received: RunEvent) -> None:
        """Write one event; some events write nothing."""
        data = received.data
        match received.event:
            case "tool_completion_chunk":
                self._write_text(data["stage_id"], _text_of(data["tool_results"]))
            case "tool_call" | "tool_progress" | "tool_result":
                self._show_call(received.event, data)
            case "approval_required" | "input_required" | "approval_decided" | "call_deferred":
                self._show_decision(received.event, data)
            case _:
                self._show_progress(received)

    def note(self, line: str, style: str = "dim", *, ends_text: bool = False) -> None:
        """Write a line to stderr.

        Args:
            ends_text: end the current line of the text first, even if stdout is a pipe.
        """
        self._status.hide()
        if ends_text or self._question or self._out.isatty():
            self._end_line()
        self._status.write(sanitize(line), style)
        if self._question:
            self.show_question(self._question)

    def show_question(self, question: str) -> None:
        """Show a question and leave the cursor behind it; a note that comes before the answer repeats the question."""
        self._end_line()
        self._question = question
        self._status.write_question(sanitize(question))
        self._is_line_open = True

    def close_question(self, *, is_typed: bool) -> None:
        """End the question's line, unless the Return of a typed answer has ended it already."""
        if self._is_line_open and not is_typed:
            self._status.end_line()
        self._question, self._is_line_open = "", False

    def pause(self) -> None:
        """Remove the status line, since another program uses the terminal; the next event shows it again."""
        self._status.hide()

    def close(self) -> None:
        """End the open line and remove the status line."""
        self._end_line()
        self._status.hide()

    # --- events -------------------------------------------------------

    def _show_progress(self, received: RunEvent) -> None:
        event, data = received.event, received.data
        match event:
            case "run_queued":
                self._queued_at = data.get("at")
                self._update_status("waiting for a worker")
            case "run_started":
                self._update_status("starting")
            case "stage_started":
                self._update_status(data["stage_id"])
            case "stage_completed":
                self._status.hide()
            case "stage_restarted":
                self._show_restart(received)
                self._update_status(data["stage_id"])
            case "retry_scheduled":
                by = f" by {data['model']}" if data.get("model") else ""
                self.note(
                    f"{data['retry_of']} is retried{by} in {data['backoff_s']:.1f} s: {in_plain_words(data['reason'])}",
                    "yellow",
                )
                self._update_status(f"{data['retry_of']} after a retry")
            case "history_composed" | "message_added":
                self._show_thread(event, data)
            case "gap" | "error" | "cancel" | "done":
                self._show_end(event, data)

    def _show_restart(self, received: RunEvent) -> None:
        stage_id = received.data["stage_id"]
        if received.data["discard_from"] >= received.sequence:  # nothing is discarded
            self.note(f"{stage_id} resumes")
            return
        is_void = stage_id == self._text_stage
        void = "; ignore its text above" if is_void else ""
        self.note(f"{stage_id} starts again{void}", "yellow", ends_text=is_void)

    def _show_thread(self, event: str, data: dict[str, Any]) -> None:
        if event == "message_added":
            text = prompt_excerpt(data["messages"])
            self.note(f"a message joins before {data['before']}: {excerpt(text)}", "cyan")
        elif left_out := data.get("cut_turns"):
            turns = f"{left_out} earlier turn{'s' if left_out > 1 else ''}"
            self.note(f"the model does not see {turns} of the thread", "yellow")

    def _show_end(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "gap":
                gap = f"event {data['requested']} is not in the run's log; the events from {data['earliest']} on follow"
                self.note(gap, "red", ends_text=True)
            case "error":
                self.note(f"error: {in_plain_words(data['error'])}", "bold red", ends_text=True)
            case "cancel":
                reason = f": {data['reason']}" if data.get("reason") else ""
                self.note(f"cancelled{reason}", "yellow", ends_text=True)
            case _:
                took = f" in {seconds(data['at'] - self._queued_at)}" if self._queued_at and data.get("at") else ""
                calls = f"{self._call_count} call{'s' if self._call_count > 1 else ''}, " if self._call_count else ""
                usage = data.get("usage")
                if merged := data.get("merged_into"):
                    self.note(f"the message joined run {merged['run_id']}", "green", ends_text=True)
                    return
                used = ", ".join(part for part in (tokens(usage) or "0 tokens", money(usage)) if part)
                self.note(f"done{took}: {calls}{used}", "green", ends_text=True)

    def _show_call(self, event: str, data: dict[str, Any]) -> None:
        call_id = data["call_id"]
        if event == "tool_call":
            self._call_count += 1
            self._name_by_call[call_id] = data["name"]
            self.note(f"{data['name']} {excerpt(data['arguments'])}", "cyan")
            self._update_status(data["stage_id"], call_id, data["name"])
        elif event == "tool_result":
            mark = " failed" if data.get("is_error") else ""
            origin = f"same as {data['same_as']}" if data.get("same_as") else seconds(data.get("duration_ms", 0))
            self._status.end_call(call_id)
            self.note(f"{data['name']}{mark}: {excerpt(data['content'])}  ({origin})", "red" if mark else "dim")
        else:
            share = f"{100 * data['fraction']:.0f} % " if data.get("fraction") is not None else ""
            name = self._name_by_call.get(call_id, "call")
            line = f"{name}: {share}{excerpt(data['message'])}"
            if self._status.is_terminal:
                self._update_status(data["stage_id"], call_id, line)
            else:
                self.note(line)

    def _show_decision(self, event: str, data: dict[str, Any]) -> None:
        call = data["call_id"]
        match event:
            case "approval_required":
                self._name_by_call[call] = data["name"]
                self.note(f"{reveal(data['name'])} waits for approval: call {call}", "bold magenta")
                for line in argument_lines(data["arguments"]) if self._shows_arguments else ():
                    self.note(line, "")
            case "call_deferred":
                whom = "a client" if data["kind"] == "client" else "another system"
                self.note(f"{reveal(data['name'])} waits for its result from {whom}: call {call}", "bold magenta")
                for line in argument_lines(data["arguments"]) if self._shows_arguments else ():
                    self.note(line, "")
            case "input_required":
                first, *others = data["question"].strip().split("\n")
                self.note(f"the model asks: {first}", "bold magenta")
                for line in (*others, f"(call {call})"):
                    self.note(line, "magenta")
            case _:
                said = {"approve": "approved", "deny": "denied", "answer": "answered"}[data["decision"]]
                why = " because nobody decided in time" if data.get("is_expired") else ""
                more = data.get("reason") or data.get("text") or data.get("arguments")
                self.note(
                    f"{self._name_by_call.get(call, 'call')} {call} is {said}{why}{f': {excerpt(more)}' if more else ''}"
                )

    # --- output ---------------------------------------------------

    def _update_status(self, stage_id: str, call_id: str = "", line: str = "") -> None:
        self._status.update(stage_id, call_id, line, is_shown=not self._is_line_open)

    def _write_text(self, stage_id: str, text: str) -> None:
        if not text:
            return
        self._status.hide()
        if stage_id != self._text_stage:
            self._end_line()
            self._text_stage = stage_id
        self._out.write(sanitize(text, keep=_LINE_ENDS))
        self._out.flush()
        self._is_line_open = not text.endswith("\n")

    def _end_line(self) -> None:
        self._status.hide()
        if self._is_line_open:
            self._is_line_open = False
            if self._question:
                self._status.end_line()
                return
            self._out.write("\n")
            self._out.flush()


class _StatusLines:
    """Writes lines to stderr; at a terminal also a status line, which the next line replaces."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self.is_terminal = err.isatty()
        self._console: Console | None = None
        self._live: Live | None = None
        self._stage_id = ""
        self._line_by_call: dict[str, str] = {}
        self._stage_started_s = 0.0
        if self.is_terminal:
            self._console = make_console(err)

    def write(self, line: str, style: str) -> None:
        """Write one line."""
        self.hide()
        if self._console is None:
            print(line, file=self._err, flush=True)
        else:
            self._console.print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def write_question(self, question: str) -> None:
        """Write a line without its end."""
        if self._console is not None:
            self._console.print(
                question, style="bold", end=" ", markup=False, highlight=False, emoji=False, soft_wrap=True
            )
            self._err.flush()

    def end_line(self) -> None:
        """End the question's line."""
        print(file=self._err, flush=True)

    def update(self, stage_id: str, call_id: str, line: str, *, is_shown: bool) -> None:
        """Set what the status line shows.

        Args:
            is_shown: show the status line if it is hidden.
        """
        if self._console is None:
            return
        if stage_id != self._stage_id:
            self._stage_id, self._stage_started_s = stage_id, time.monotonic()
            self._line_by_call.clear()
        if call_id:
            self._line_by_call[call_id] = line
        if self._live is None and is_shown:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._render_status, console=self._console, transient=True, redirect_stdout=False,
                redirect_stderr=False, refresh_per_second=REFRESHES_A_SECOND,
            )  # fmt: skip
            self._live.start(refresh=True)

    def end_call(self, call_id: str) -> None:
        """Remove a finished call from the status line."""
        self._line_by_call.pop(call_id, None)

    def hide(self) -> None:
        """Remove the status line."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _render_status(self) -> "RenderableType":
        from rich.text import Text

        now = time.monotonic()
        frame = _FRAMES[int(now * REFRESHES_A_SECOND) % len(_FRAMES)]
        parts = [self._stage_id, *list(self._line_by_call.values()), seconds(1000 * (now - self._stage_started_s))]
        return Text(f"{frame} {sanitize('  '.join(parts))}", style="dim", no_wrap=True, overflow="ellipsis")


def make_console(file: TextIO) -> "Console":
    """Return a Rich console for a file; NO_COLOR switches all styles off."""
    from rich.console import Console

    return Console(file=file, color_system=None if os.environ.get("NO_COLOR") else "auto")


def _text_of(chunk: dict[str, Any]) -> str:
    """Return the text that a chat completion chunk adds."""
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", []))
