"""Prints the output of several processes on one terminal, each line with the name of its process.

    worker   | 12:00:00.123 INFO  stagebus.worker.worker_app  worker host:123 is ready for 100 runs

Children write JSON logs, since their output is not a terminal. If ours is one, they are printed as text.
"""

import json
import sys
from contextlib import suppress
from typing import Any, Final

from stagebus.shared.runtime.sanitize import sanitize

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
        text = readable(line) if self._is_terminal else line
        with suppress(OSError):
            print(f"{name:<8} | {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's output


def readable(line: str) -> str:
    """Formats a JSON log line as text. Returns any other line without control characters."""
    record = _decode(line)
    if record is None:
        return sanitize(line)
    fields = "".join(f" {name}={value}" for name, value in record.items() if name not in _STANDARD_FIELDS)
    clock = str(record.get("time", ""))[11:23]
    head = f"{clock} {record.get('level', ''):<7} {record.get('logger', '')}  {record['message']}{fields}"
    traceback = str(record.get("exception", ""))
    return "\n".join([sanitize(head), *(f"         | {sanitize(part)}" for part in traceback.splitlines())])


def _decode(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "message" in record else None
