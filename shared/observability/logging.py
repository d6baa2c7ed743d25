"""Logs of every process: a line an event on stderr, JSON for machines and text for a terminal.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "stagebus.access", "message": "request", "status": 202}
    12:00:00.123 INFO  stagebus.gateway.server.middleware  request status=202

Fields beside the message come through `extra={"fields": {...}}`, and the request's and the
run's ids out of `shared/observability/trace.py`. Whatever a client sent
stays inside its line: control characters are escaped in both forms.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from stagebus.shared.observability import trace

# What a fields mapping is called on a log record.
FIELDS: Final = "fields"
# The logger of `shared/observability/audit.py`.
AUDIT: Final = "stagebus.audit"

# Every C0 and C1 control and the line separators, so that no text can begin a line of its own.
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def configure(level: str) -> None:
    """Send every logger's lines to stderr; called once, by a process's entry point.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    # It logs the address of every request, and some services want their key in it.
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """What the caller gave beside the message, and whose work it is about."""
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return {**trace.current().fields(), **fields}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": _timestamp(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Not orjson: ASCII alone cannot break a line, and a lone surrogate cannot break the logging.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A record as a line to read; only a traceback takes more."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        clock = _timestamp(record).strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {record.levelname:<7} {record.name}  {record.getMessage()}{fields}".translate(_ESCAPES)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _timestamp(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
