"""Children's lines on one terminal."""

import pytest

from stagebus.shared.local.process_output import Printer, readable


def test_log_line_becomes_text() -> None:
    line = (
        '{"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "stagebus.access", "message": "request", '
        '"status": 202, "path": "/a\\u001b[2J"}'
    )

    assert readable(line) == "12:00:00.123 INFO    stagebus.access  request status=202 path=/a\ufffd[2J"


def test_traceback_keeps_its_lines() -> None:
    text = readable('{"message": "m", "exception": "Traceback\\n  x\\nOops"}').splitlines()

    assert [part.strip() for part in text[1:]] == ["| Traceback", "|   x", "| Oops"]


@pytest.mark.parametrize("line", ["Ready", "{not json", '{"no": "log line"}', "[1]", ""])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert readable(line) == line


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert readable("\x1b[2Jx") == "\ufffd[2Jx"


def test_lines_are_put_under_their_process(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    printer.print_output("demo", '{"message": "m"}')
    printer.print_message("up")

    assert capsys.readouterr() == ("up\n", 'demo     | {"message": "m"}\n')
