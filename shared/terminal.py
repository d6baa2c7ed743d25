"""A run's events as a person at a terminal reads them.

    get_weather {"city":"Paris"}
    get_weather: 50 % found the place
    get_weather: 18 °C, clear sky  (0.3 s)
    In Paris it is 18 °C and clear.
    done: 2 calls, 412 tokens

The model's text goes to stdout, all else to stderr, so that `stagebus run "…" > answer` holds
the text alone. At a terminal the progress of calls is one line that changes. Control characters of models and tools do not reach the terminal.
"""

import shutil
from typing import Any, Final, TextIO

from shared.client import Followed
from shared.events import (
    Cancel,
    Done,
    Error,
    Gap,
    RetryScheduled,
    StageRestarted,
    ToolCall,
    ToolCompletionChunk,
    ToolProgress,
    ToolResult,
)

EXCERPT_MAX_CHARS: Final = 160

EXIT_DONE: Final = 0
EXIT_ERROR: Final = 1
EXIT_CANCELLED: Final = 2
_EXITS: Final = {Done.event: EXIT_DONE, Cancel.event: EXIT_CANCELLED}

_CLEAR_LINE: Final = "\r\x1b[K"
_LINE_ENDS: Final = "\n\t"
_CONTROLS: Final = frozenset(
    chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)  # fmt: skip


def printable(text: str, keep: str = "") -> str:
    """`text` without what a terminal would obey: escape sequences, bidirectional overrides, line ends."""
    if text.isprintable():
        return text
    return "".join(c if c not in _CONTROLS or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def excerpt(text: str) -> str:
    """`text` on one line, cut where it is long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= EXCERPT_MAX_CHARS else line[: EXCERPT_MAX_CHARS - 1] + "…"


def exit_code(event: str) -> int:
    """What the terminal event makes of the command: 0 done, 1 error, 2 cancelled."""
    return _EXITS.get(event, EXIT_ERROR)


class RunView:
    """Writes a run's events as they come."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._is_in_line = False
        self._is_in_progress = False  # a line on stderr that the next one writes over
        self._text_stage = ""
        self._calls = 0
        self._name_by_call: dict[str, str] = {}

    def show(self, followed: Followed) -> None:
        """Write one event; most of them need no line."""
        data = followed.data
        match followed.event:
            case ToolCompletionChunk.event:
                self._write_text(data["stage_id"], _content(data["tool_results"]))
            case ToolCall.event | ToolProgress.event | ToolResult.event:
                self._show_call(followed.event, data)
            case StageRestarted.event:
                self.note(f"{data['stage_id']} starts again{self._what_is_void(data['stage_id'])}")
            case RetryScheduled.event:
                self.note(f"{data['retry_of']} is tried again in {data['backoff_s']:.1f} s: {data['reason']}")
            case Gap.event:
                self.note(f"Redis lost a part of the run: what came from event {data['earliest']} on comes again")
            case Error.event:
                self.note(f"error: {data['error']}")
            case Cancel.event:
                self.note("cancelled")
            case Done.event:
                calls = f"{self._calls} call{'s' if self._calls > 1 else ''}, " if self._calls else ""
                self.note(f"done: {calls}{data.get('usage', {}).get('total_tokens', 0)} tokens")

    def note(self, line: str) -> None:
        """A line beside the text."""
        self._end_line()
        print(printable(line), file=self._err, flush=True)

    def _show_call(self, event: str, data: dict[str, Any]) -> None:
        if event == ToolCall.event:
            self._calls += 1
            self._name_by_call[data["call_id"]] = data["name"]
            self.note(f"{data['name']} {excerpt(data['arguments'])}")
        elif event == ToolResult.event:
            mark = " failed" if data.get("is_error") else ""
            took = f"  ({data.get('duration_ms', 0) / 1000:.1f} s)"
            self.note(f"{data['name']}{mark}: {excerpt(data['content'])}{took}")
        else:
            share = f"{100 * data['fraction']:.0f} % " if "fraction" in data else ""
            line = f"{self._name_by_call.get(data['call_id'], 'call')}: {share}{excerpt(data['message'])}"
            show = self._write_over if self._err.isatty() else self.note
            show(line)

    def _write_over(self, line: str) -> None:
        self._end_line()
        # A line that wraps could not be taken back.
        self._err.write(printable(line)[: shutil.get_terminal_size().columns - 1])
        self._err.flush()
        self._is_in_progress = True

    def _write_text(self, stage_id: str, text: str) -> None:
        if not text:
            return
        if stage_id != self._text_stage:
            self._end_line()
            self._text_stage = stage_id
        if self._is_in_progress:
            self._end_line()
        self._out.write(printable(text, keep=_LINE_ENDS))
        self._out.flush()
        self._is_in_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._is_in_progress:
            self._err.write(_CLEAR_LINE)
            self._is_in_progress = False
        if self._is_in_line:
            self._out.write("\n")
            self._out.flush()
            self._is_in_line = False

    def _what_is_void(self, stage_id: str) -> str:
        return "; its text above is void" if stage_id == self._text_stage else ""


def _content(chunk: dict[str, Any]) -> str:
    """The text that a chat completion chunk adds."""
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", []))
