import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
from uvicorn.logging import AccessFormatter

from stagebus.shared.observability.logging import (
    AUDIT,
    FIELDS,
    JsonFormatter,
    RedactingFilter,
    TextFormatter,
    configure,
)

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


def test_audit_log_is_written_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    for name in (AUDIT, "httpx2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    configure("ERROR")

    assert logging.getLogger(AUDIT).level == logging.INFO


def test_traceback_cannot_forge_a_line() -> None:
    """A tool's exception may contain what a model or a server wrote."""
    forged = "12:00:00.123 INFO    stagebus.audit  key.create subject=operator:root"
    error = ValueError(f"boom\n{forged}\r{forged}\x1b[2J\x9b2J\u202e")
    lines = TextFormatter().format(record("failed", (ValueError, error, None))).split("\n")

    assert len(lines) > 1
    assert all(line.startswith("         | ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)


def test_record_of_uvicorn_keeps_its_arguments() -> None:
    """Under another server the filter is on the handler of uvicorn's access log, whose formatter reads them."""
    args = ("127.0.0.1:1", "GET", "/runs/01J?ticket=made-up", "1.1", 200)
    made = logging.LogRecord("uvicorn.access", logging.INFO, __file__, 1, '%s - "%s %s HTTP/%s" %d', args, None)
    RedactingFilter().filter(made)

    assert "ticket=***" in AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s").format(made)


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text for API key made-up")

    __repr__ = __str__


def test_value_without_text_does_not_fail_the_code_that_logs_it() -> None:
    cyclic: dict[str, Any] = {}
    cyclic["inner"] = cyclic
    unfit = record("at %s")
    unfit.args = (Unprintable(),)
    records = [unfit, record("at", x=Unprintable()), record("at", **cyclic), record("at", x={b"key": 1})]
    shown = []
    for made in records:
        RedactingFilter().filter(made)
        shown.append(JsonFormatter().format(made))

    assert all(json.loads(line)["message"] for line in shown)
    assert "made-up" not in "".join(shown)
    assert json.loads(shown[3])["x"] == {"b'key'": 1}


def test_formatter_of_another_library_gets_no_secret() -> None:
    """Some format `exc_info` themselves, and add each attribute that `extra` has set."""
    error = RuntimeError("Authorization: made-up-key")
    made, plain = record("x", (RuntimeError, error, None)), record("x", (ValueError, ValueError("plain"), None))
    made.__dict__["url"] = "https://user:made-up@host"
    for each in (made, plain):
        RedactingFilter().filter(each)

    assert "made-up" not in repr(vars(made))
    assert "RuntimeError: Authorization: ***" in logging.Formatter().format(made)
    assert plain.exc_info


PLANTED = {
    "OPENAI_API_KEY": "sk-planted-provider-key",
    "STAGEBUS_REDIS_URL": "redis://:planted%2Fpassword@127.0.0.1:6379/0",
    "STAGEBUS_SECRET": "planted-signing-secret-0123456789abcdef",
    "PLANTED_TOOL_KEY": "planted-tool-key",
}
SECRETS = ("planted", "Zr0vAAAA", "c2lnbmF0dXJl")
# Logs the text `secrets` from every place that reaches a process's log.
PROGRAM = """
import asyncio, gc, logging, sys, threading, warnings
from stagebus.shared.config.config_file import Secret
from stagebus.shared.config.settings import load_settings
from stagebus.shared.observability.audit import audit
from stagebus.shared.observability.logging import configure, log_uncaught_exceptions

sys.stderr.isatty = lambda: sys.argv[1] == "text"
settings = load_settings()
secrets = " ".join([
    settings.openai_api_key.get_secret_value(), settings.redis_url.get_secret_value(), "planted/password",
    *settings.secrets, Secret(env="PLANTED_TOOL_KEY").read(),
    "sbk_3f9c0a5d77e1_Zr0vAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "eyJhbGciOiJIUzI1NiJ9.eyJydW4iOiIwMSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
])
configure("DEBUG")
log_uncaught_exceptions()

def fail(text=secrets):
    try:
        raise KeyError(text)
    except KeyError as exc:
        exc.add_note(text)
        raise RuntimeError(text) from exc

for number, name in enumerate(["stagebus.x", "uvicorn.error", "arq.worker", "asyncio", "redis", "openai", "mcp"]):
    logger = logging.getLogger(name)
    logger.warning("at-message-%d " + secrets.replace("%", "%%"), number)
    logger.warning("at-argument-%d %s", number, secrets)
    logger.warning(f"at-misfit-{number} %d", secrets)
    try:
        fail()
    except RuntimeError:
        logger.exception("at-traceback-%d", number)
audit("at-fields", subject=secrets, tenant="t", nested={"a": [secrets, {"b": (secrets,)}]}, any=ValueError(secrets))
warnings.warn("at-warning " + secrets)
thread = threading.Thread(target=fail, args=("at-thread " + secrets,))
thread.start()
thread.join()

class Broken:
    def __del__(self):
        fail("at-unraisable " + secrets)

Broken()
async def leave_failed_task():
    asyncio.create_task(asyncio.to_thread(fail, "at-task " + secrets))
    await asyncio.sleep(0.05)
    gc.collect()

asyncio.run(leave_failed_task())
fail("at-exit " + secrets)
"""
PLACES = [
    *(f"at-{kind}-{n}" for kind in ("message", "argument", "misfit", "traceback") for n in range(7)),
    *("at-fields", "at-warning", "at-thread", "at-unraisable", "at-task", "at-exit"),
]


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_place_logs_a_secret(form: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, form],
        env={**os.environ, **PLANTED},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    lines = ran.stderr.splitlines()
    if form == "json":
        assert all(json.loads(line) for line in lines)
    else:
        assert not any(line.startswith("Traceback") for line in lines)
    # The traceback of the main program quotes its source lines.
    assert [place for place in PLACES if place not in ran.stderr] == []
    assert ran.stderr.count("***") > 10 * len(PLACES)
    assert [secret for secret in SECRETS if secret in ran.stderr.replace("PLANTED", "")] == []
