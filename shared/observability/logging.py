"""Logging of all processes: one line per record on stderr, as JSON or, on a terminal, as text.

    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "stagebus.access", "message": "request", "status": 202}
    12:00:00.123 INFO  stagebus.gateway.server.middleware  request status=202

Further fields come from `extra={"fields": {...}}`, and the ids of the request and the run from
`shared/observability/trace.py`. Secrets are masked in all parts of a record, tracebacks included. Control characters are
escaped in both forms, and as text each line of a traceback has a prefix, so that nobody can forge a line.
"""

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from stagebus.shared.observability import trace
from stagebus.shared.observability.redaction import redact
from stagebus.shared.runtime.sanitize import sanitize

# The attribute of a log record with the further fields.
FIELDS: Final = "fields"
# The logger of `shared/observability/audit.py`.
AUDIT: Final = "stagebus.audit"

_TRACEBACK_MARGIN: Final = "         | "
_RECORD_ATTRIBUTES: Final = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}
_logger: Final = logging.getLogger(__name__)


def configure(level: str) -> None:
    """Sends the records of all loggers to stderr. Called once, by the entry point of a process.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    handler.addFilter(RedactingFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger(AUDIT).setLevel(logging.INFO)
    # It logs the URL of every request, which may contain a service's key.
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def log_uncaught_exceptions() -> None:
    """Sends warnings, and exceptions that nobody catches, to the log: Python would print them unmasked."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _on_uncaught
    threading.excepthook = lambda args: _on_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _on_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _on_uncaught(kind: type[BaseException], exc: BaseException | None, traceback: TracebackType | None) -> None:
    if exc is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        _logger.critical("uncaught exception", exc_info=(kind, exc, traceback))


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Returns the further fields of a record and the ids of the current trace."""
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return {**trace.current().fields(), **fields}


class RedactingFilter(logging.Filter):
    """Masks secrets in a record's message, fields, further attributes and traceback. For a handler with any formatter."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Changes the record in place. Returns True."""
        try:
            _redact_record(record)
        except Exception as exc:  # noqa: BLE001 - of an object's `__str__`; it must not reach the code that logs
            record.msg = f"a log record of {record.pathname}:{record.lineno} cannot be written: {type(exc).__name__}"
            record.args = record.exc_info = record.exc_text = record.stack_info = None
            for name in vars(record).keys() - _RECORD_ATTRIBUTES:
                delattr(record, name)
        return True


def _redact_record(record: logging.LogRecord) -> None:
    _redact_message(record)
    if record.exc_info and record.exc_info[0] is not None:
        text = record.exc_text or logging.Formatter().formatException(record.exc_info)
        record.exc_text = redact(text)
        if record.exc_text != text:
            record.exc_info = None  # some formatters read it rather than the text
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
    for name in vars(record).keys() - _RECORD_ATTRIBUTES:  # of `extra`
        setattr(record, name, _redacted(getattr(record, name)))


def _redact_message(record: logging.LogRecord) -> None:
    """Masks secrets in the message. Keeps the arguments where that is possible: uvicorn's formatters read them."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the format, of any library
        record.msg, record.args = redact(f"{record.msg} {record.args}"), None
        return
    masked = redact(message)
    if masked == message:
        return
    if isinstance(record.args, tuple):
        record.args = tuple(redact(value) if isinstance(value, str) else value for value in record.args)
    if record.getMessage() != masked:
        record.msg, record.args = masked, None


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {redact(str(name)): _redacted(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(inner) for inner in value]
        case _:
            return redact(str(value))


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
        if exception := _exception_of(record):
            line["exception"] = exception
        # Not orjson: this output is ASCII, so neither line separators nor lone surrogates are a problem.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as a readable line, followed by its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        clock = _timestamp(record).strftime("%H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        return text_line(
            clock, record.levelname, record.name, record.getMessage(), fields=fields, exception=_exception_of(record)
        )


def text_line(
    clock: str, level: str, logger: str, message: str, *, fields: Mapping[str, Any], exception: str = ""
) -> str:
    """Returns a record as text: one line, and a line with a margin for each line of its traceback."""
    shown = "".join(f" {name}={value}" for name, value in fields.items())
    lines = [sanitize(f"{clock} {level:<7} {logger}  {message}{shown}")]
    if exception:
        lines += [_TRACEBACK_MARGIN + sanitize(line) for line in exception.rstrip("\n").split("\n")]
    return "\n".join(lines)


def _exception_of(record: logging.LogRecord) -> str:
    if record.exc_text or not record.exc_info or record.exc_info[0] is None:
        return record.exc_text or ""
    return logging.Formatter().formatException(record.exc_info)


def _timestamp(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
