import json
import logging
from typing import Any

import pytest

from stagebus.shared.observability.logging import FIELDS, JsonFormatter, TextFormatter

HOSTILE = "a\nb\r\x1b[31m\x00\x85\u2028c\ud800"


def record(message: str, exc_info: Any = None, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("stagebus.access", logging.INFO, __file__, 1, message, None, exc_info)
    made.created = 1769860800.123
    setattr(made, FIELDS, fields)
    return made


def test_json_line() -> None:
    assert json.loads(JsonFormatter().format(record("request", status=202))) == {
        "time": "2026-01-31T12:00:00.123Z",
        "level": "INFO",
        "logger": "stagebus.access",
        "message": "request",
        "status": 202,
    }


def test_text_line() -> None:
    assert (
        TextFormatter().format(record("request", status=202))
        == "12:00:00.123 INFO    stagebus.access  request status=202"
    )


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_client_text_cannot_begin_a_line(formatter: logging.Formatter) -> None:
    line = formatter.format(record(f"said {HOSTILE}", path=HOSTILE))

    assert len(line.splitlines()) == 1
    assert not any(ord(character) < 0x20 for character in line)


def test_json_keeps_what_was_said() -> None:
    assert json.loads(JsonFormatter().format(record("x", path=HOSTILE)))["path"] == HOSTILE


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_traceback_is_kept(formatter: logging.Formatter) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    line = formatter.format(record("failed", (caught.type, caught.value, caught.tb)))

    assert "ZeroDivisionError: division by zero" in line
    assert "Traceback" in line


def test_value_of_any_type_can_be_a_field() -> None:
    assert json.loads(JsonFormatter().format(record("x", where={1: object})))["where"]
