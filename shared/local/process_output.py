"""Prints the output of several processes on one terminal, each line with the name of its process.

    worker   | 12:00:00.123 INFO  stagebus.worker.worker_app  worker host:123 is ready for 100 runs

Children write JSON logs, since their output is not a terminal. If ours is one, they are printed as text.
"""

import json
import sys
from contextlib import suppress
from typing import Any, Final

from stagebus.shared.observability.logging import text_line
from stagebus.shared.observability.redaction import printable, redact

_STANDARD_FIELDS: Final = frozenset({"time", "level", "logger", "message", "exception"})


class Printer:
    """Writes the children's lines to stderr and own messages to stdout."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def print_message(self, line: str) -> None:
        """Prints an own message."""
        with suppress(OSError):  # a closed terminal must not end the system
            print(line, flush=True)  # noqa: T201 - the command's output

    def print_output(self, name: str, line: str) -> None:
        """Prints a line of a child."""
        text = readable(line, is_terminal=self._is_terminal)
        with suppress(OSError):
            print(f"{name:<8} | {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's output


def readable(line: str, *, is_terminal: bool = True) -> str:
    """Formats a JSON log line as text, for a terminal. Masks secrets and escapes controls in any other line."""
    record = _decode(line)
    if record is None or not is_terminal:
        return printable(line)
    text = text_line(
        str(record.get("time", ""))[11:23],
        str(record.get("level", "")),
        str(record.get("logger", "")),
        str(record["message"]),
        fields={name: value for name, value in record.items() if name not in _STANDARD_FIELDS},
        exception=str(record.get("exception", "")),
    )
    return redact(text)  # what a tool prints may look like a log line


def _decode(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except (
        ValueError,
        RecursionError,
    ):  # an error here would end the reading, and the child would block when it writes
        return None
    return record if isinstance(record, dict) and "message" in record else None
