"""Logging of all processes: one line per record on stderr, as JSON or, on a terminal, as text.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "stagebus.access", "message": "request", "status": 202}
    12:00:00.123 INFO  stagebus.gateway.server.middleware  request status=202

Further fields come from `extra={"fields": {...}}`, and the ids of the request and the run from
`shared/observability/trace.py`. Control characters are escaped in both forms, so that a client cannot forge a line.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from stagebus.shared.observability import trace

# The attribute of a log record with the further fields.
FIELDS: Final = "fields"
# The logger of `shared/observability/audit.py`.
AUDIT: Final = "stagebus.audit"

# All C0 and C1 controls and the line separators, so that no text can start a new line.
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def configure(level: str) -> None:
    """Sends the records of all loggers to stderr. Called once, by the entry point of a process.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    # It logs the URL of every request, which may contain a service's key.
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Returns the further fields of a record and the ids of the current trace."""
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return {**trace.current().fields(), **fields}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {
            "time": _timestamp(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Not orjson: this output is ASCII, so neither line separators nor lone surrogates are a problem.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as a readable line, followed by its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        clock = _timestamp(record).strftime("%H:%M:%S.%f")[:-3]
        line = f"{clock} {record.levelname:<7} {record.name}  {record.getMessage()}{fields}".translate(_ESCAPES)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _timestamp(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
