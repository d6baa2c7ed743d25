"""The lines of several processes on one terminal, each under its process's name.

    worker   | 12:00:00.123 INFO  stagebus.worker.worker_app  worker host:123 is ready for 100 runs

Children write JSON, as they see no terminal; it becomes text where we have one.
"""

import json
import sys
from contextlib import suppress
from typing import Any, Final

from stagebus.shared.runtime.sanitize import sanitize

_OWN: Final = frozenset({"time", "level", "logger", "message", "exception"})


class Printer:
    """Writes children's lines to stderr and our own to stdout."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def say(self, line: str) -> None:
        """One line of our own."""
        with suppress(OSError):  # nobody reads; that is no reason to end a system that works
            print(line, flush=True)  # noqa: T201 - the command's output

    def show(self, name: str, line: str) -> None:
        """One line of a child's."""
        text = readable(line) if self._is_terminal else line
        with suppress(OSError):
            print(f"{name:<8} | {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's output


def readable(line: str) -> str:
    """A JSON log line as text; any other line as it is, but for control characters."""
    record = _decode(line)
    if record is None:
        return sanitize(line)
    fields = "".join(f" {name}={value}" for name, value in record.items() if name not in _OWN)
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
