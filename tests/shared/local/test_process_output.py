"""Children's lines on one terminal."""

import json

import pytest

from stagebus.shared.local.process_output import Printer, readable


def test_log_line_becomes_text() -> None:
    line = (
        '{"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "stagebus.access", "message": "request", '
        '"status": 202, "path": "/a\\u001b[2J"}'
    )

    assert readable(line) == "12:00:00.123 INFO    stagebus.access  request status=202 path=/a\\u001b[2J"


def test_traceback_keeps_its_lines() -> None:
    text = readable('{"message": "m", "exception": "Traceback\\n  x\\nOops"}').splitlines()

    assert [part.strip() for part in text[1:]] == ["| Traceback", "|   x", "| Oops"]


@pytest.mark.parametrize("line", ["Ready", "{not json", '{"no": "log line"}', "[1]", "", '{"a":' * 100_000])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert readable(line) == line


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_and_secrets_do_not_reach_the_output(*, is_terminal: bool) -> None:
    line = "\x1b[2Jx\u202e redis://:hunter2@localhost"

    assert readable(line, is_terminal=is_terminal) == r"\u001b[2Jx\u202e redis://***@localhost"
    assert "hunter2" not in readable(json.dumps({"message": "x", "url": line}), is_terminal=is_terminal)


def test_exception_cannot_forge_a_line() -> None:
    record = {"message": "m", "exception": "Oops\r12:00 INFO stagebus.audit key.create\n12:00 INFO stagebus.audit"}

    assert readable(json.dumps(record)).splitlines()[1:] == [
        r"         | Oops\r12:00 INFO stagebus.audit key.create",
        "         | 12:00 INFO stagebus.audit",
    ]


def test_lines_are_put_under_their_process(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.print_output("demo", '{"message": "m"}')
    printer.print_message("up")

    assert capsys.readouterr() == ("up\n", 'demo     | {"message": "m"}\n')
