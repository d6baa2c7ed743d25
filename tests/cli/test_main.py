"""The `stagebus` command: its requests, its output and its exit codes."""

import asyncio
import json
import os
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import typer
from typer.testing import CliRunner, Result

from stagebus import client
from stagebus.cli import main
from stagebus.cli.exit_codes import ExitCode, exit_code_of
from stagebus.cli.main import app
from stagebus.cli.shared_options import STATES, complete_model, complete_run_id, complete_status, complete_tool
from stagebus.shared.domain.runs import RunStatus
from tests.support.fake_gateway import DONE, RETRY, Answer, Asked, FakeGateway, frame

ROOT = Path(__file__).parent.parent.parent
COMMANDS = [
    *("up", "gateway", "worker", "demo-model", "run", "tail", "ls", "show", "cancel", "approve", "deny", "answer"),
    *("share", "tools", "models", "keys"),
]
MADE = Answer(b'{"id": "01J"}', 202, "application/json")
STREAM = Answer(RETRY + frame(1) + frame(2, "done", DONE))


@pytest.fixture(autouse=True)
def _isolated_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(client.api_requests, "RETRY_S", 0)


def invoke(*args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(args), input=stdin)


async def ask(gateway: FakeGateway, *args: str, stdin: str = "") -> Result:
    return await asyncio.to_thread(invoke, *args, "--url", gateway.url, stdin=stdin)


def test_version_is_the_package_version() -> None:
    result = invoke("--version")

    assert (result.exit_code, result.output.strip()) == (0, version("stagebus"))


async def test_every_option_of_run_reaches_the_request() -> None:
    async with FakeGateway(lambda _: MADE) as gateway:
        result = await ask(
            gateway, "run", "-", "--model", "extraction=a,synthesis=b", "--system", "Be brief.", "--tool", "x", "--tool",
            "y", "--no-synthesis", "--max-rounds", "3", "--timeout", "2.5", "--metadata", "a=b=c", "--metadata", "d=",
            "--detach", stdin="long\nprompt",
        )  # fmt: skip

    assert (result.exit_code, result.stdout) == (0, "01J\n")
    assert orjson.loads(gateway.asked[0].body) == {
        "user_prompt": "long\nprompt", "model": {"extraction": "a", "synthesis": "b"}, "system_prompt": "Be brief.",
        "tools": ["x", "y"], "synthesis": False, "max_rounds": 3, "timeout_s": 2.5, "metadata": {"a": "b=c", "d": ""},
    }  # fmt: skip


async def test_run_sends_only_the_given_options() -> None:
    async with FakeGateway(lambda _: MADE) as gateway:
        await ask(gateway, "run", "hi", "-d")
        await ask(gateway, "run", "hi", "-d", "--no-tools")

    assert [orjson.loads(asked.body) for asked in gateway.asked] == [
        {"user_prompt": "hi"},
        {"user_prompt": "hi", "tools": []},
    ]


def test_lists_have_one_name_and_the_older_one_still_works() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    for group in (commands, *(commands[name].commands for name in ("threads", "keys", "webhooks"))):
        assert group["ls"].callback is not None
        assert (group["ls"].hidden, group["list"].hidden) == (False, True)
        assert group["list"].params[0].name == group["ls"].params[0].name


async def test_ls_filters_and_continues_after_a_short_page() -> None:
    """The gateway searches a bounded number of runs per page."""
    record = {"id": "01A", "status": "failed", "created_at": "2026-01-31T12:00:00.123Z", "prompt": "x"}
    pages = [{"runs": [], "next": "01B"}, {"runs": [record, record], "next": "019"}]
    answers = [Answer(orjson.dumps(page), 200, "application/json") for page in pages]
    async with FakeGateway.scripted(*answers) as gateway:
        result = await ask(gateway, "ls", "--limit", "1", "-q", "x", "--status", "failed", "--metadata", "a=b")

    assert result.stdout == "01A  failed     2026-01-31T12:00:00.123Z  x\n"
    assert [asked.path for asked in gateway.asked] == [
        "/runs?limit=1&status=failed&q=x&metadata.a=b",
        "/runs?limit=1&before=01B&status=failed&q=x&metadata.a=b",
    ]


@pytest.mark.parametrize(
    ("args", "sent", "said"),
    [
        (("approve", "01J", "c/1"), {"decision": "approve"}, "c/1 is approved\n"),
        (("approve", "01J", "c/1", "--arguments", '{"n": 1}'), {"decision": "approve", "arguments": {"n": 1}},
         "c/1 is approved\n"),
        (("deny", "01J", "c/1", "--reason", "no"), {"decision": "deny", "reason": "no"}, "c/1 is denied\n"),
        (("answer", "01J", "c/1", "blue"), {"decision": "answer", "text": "blue"}, "c/1 is answered\n"),
        (("result", "01J", "c/1", "blue"), {"content": "blue", "is_error": False}, "c/1 has its result\n"),
        (("result", "01J", "c/1", "no", "--error"), {"content": "no", "is_error": True}, "c/1 has its result\n"),
    ],
)  # fmt: skip
async def test_decision_command_sends_the_decision(args: tuple[str, ...], sent: dict, said: str) -> None:
    async with FakeGateway(lambda _: Answer(b"{}", 202, "application/json")) as gateway:
        result = await ask(gateway, *args)

    assert result.stdout == said
    is_result = args[0] == "result"
    assert gateway.asked[0].path == f"/runs/01J/{'calls' if is_result else 'approvals'}/c%2F1{'/result' * is_result}"
    assert orjson.loads(gateway.asked[0].body) == sent


@pytest.mark.parametrize(
    "args",
    [
        ("run", "hi", "--metadata", "novalue"),
        ("run", "hi", "--tool", "x", "--no-tools"),
        ("run", "hi", "--max-rounds", "0"),
        ("approve", "01J", "c", "--arguments", "[1]"),
        ("run", "hi", "--timeout", "-3"),
        ("run", "hi", "--timeout", "nan"),
        ("share", "01J", "--expires", "soon"),
        ("tail", "01J", "--url", "nowhere"),
    ],
)
def test_wrong_usage_exits_with_2(args: tuple[str, ...]) -> None:
    result = invoke(*args)

    assert (result.exit_code if result.exit_code == 2 else exit_code_of(result.exception)) == ExitCode.USAGE


def test_wrong_timeout_names_its_option() -> None:
    assert "'--timeout': must be a number above 0" in invoke("run", "hi", "--timeout", "-3").stderr


def test_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_ULR", "http://127.0.0.1:1")

    assert (
        "STAGEBUS_ULR is not a variable of Stagebus and has no effect; did you mean STAGEBUS_URL?"
        in invoke("ls").stderr
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("keys", "create"), ("models", "check")])
def test_h_is_help_everywhere(command: tuple[str, ...]) -> None:
    result = invoke(*command, "-h")

    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_binary_stdin_is_an_error_with_a_message() -> None:
    result = CliRunner().invoke(app, ["run", "-"], input=b"ok\xff")

    assert result.exit_code == ExitCode.USAGE
    assert "stdin is not UTF-8 text: byte 2 is 0xff" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [([b"ls", b"--url", b"http://127.0.0.1:1/\xff"], ""), ([b"run", b"\xff\xfe"], ""), ([b"run", b"-"], "<&-"),
     ([b"ls", b"--profile", b"x"], ""), ([b"approve", b"1", b"2", b"--arguments", b"[" * 99_999], ">&-")],
)  # fmt: skip
def test_no_input_ends_in_a_traceback(arguments: list[bytes], closed: str, tmp_path: Path) -> None:
    """The whole command, since Python decodes arguments and opens the streams before it."""
    (tmp_path / "stagebus").mkdir()
    (tmp_path / "stagebus" / "config.toml").write_text("profiles = 7")
    ran = subprocess.run(
        ["sh", "-c", f'exec "$0" -m stagebus.cli "$@" {closed}', sys.executable, *arguments],
        cwd=ROOT, env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, check=False,
    )  # fmt: skip

    assert ran.returncode in set(ExitCode) - {ExitCode.SUCCEEDED}
    assert len(ran.stderr.splitlines()) in (1, 4), ran.stderr
    assert b"Traceback" not in ran.stderr


def test_unexpected_error_is_one_line_and_at_debug_level_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*, standalone_mode: bool) -> None:
        raise RuntimeError("\x1b[2J redis://:planted@localhost")

    monkeypatch.setattr(main, "app", fail)
    for level in ("INFO", "DEBUG"):
        monkeypatch.setenv("STAGEBUS_LOG_LEVEL", level)
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr().err
        assert ended.value.code == ExitCode.FAILED
        assert said.startswith(r"stagebus: unexpected RuntimeError: \u001b[2J redis://***@localhost")
        assert ("Traceback" in said) == (level == "DEBUG")
        assert "planted" not in said


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(typer.Abort(), ExitCode.DETACHED, "stagebus: interrupted\n"), (typer.Exit(ExitCode.PARKED), ExitCode.PARKED, "")],
)
def test_end_of_the_command_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("stagebus.cli.run_commands.connect", fail)
    monkeypatch.setattr(sys, "argv", ["stagebus", "tools"])
    with pytest.raises(SystemExit) as ended:
        main.main()

    assert ended.value.code == code
    assert capsys.readouterr().err == said


HOSTILE = "\x1b[2J\x9b2J\x7f\u202e"


async def test_no_text_of_a_gateway_reaches_the_terminal_raw() -> None:
    record = dict.fromkeys(
        ("id", "status", "model", "created_at", "prompt", "provider", "name", "description", "last_event_id", "page",
         "events", "expires_at", "ticket"), HOSTILE,
    ) | dict.fromkeys(("finished_at", "started_at", "usage", "error", "tries"))  # fmt: skip
    record |= {
        "cancel_requested": False, "cancel_reason": HOSTILE, "metadata": {HOSTILE: HOSTILE}, "stages": [], "pending_approvals": [],
        "result": {"text": HOSTILE}, "abilities": {"tools": HOSTILE}, "fallbacks": [HOSTILE], "is_default": False,
        "links": {"page": HOSTILE, "events": HOSTILE},
    }  # fmt: skip
    page = {**record, "runs": [record], "next": None, "models": [record], "patterns": [HOSTILE], "any_model": True,
            "tools": [record]}  # fmt: skip
    commands = [("ls",), ("show", "01J"), ("models",), ("tools",), ("share", "01J")]
    commands += [(*command, "--json") for command in commands]
    async with FakeGateway(lambda _: Answer(orjson.dumps(page), 200, "application/json")) as gateway:
        for command in commands:
            result = await ask(gateway, *command)
            assert result.exit_code == 0, (command, result.exception)
            assert result.output.replace("\n", "").isprintable(), command
            assert r"\u202e" in result.output
            if "--json" in command:
                assert HOSTILE in json.loads(result.output.splitlines()[0]).values()


async def test_why_a_run_was_cancelled_is_one_line_of_its_record() -> None:
    record = dict.fromkeys(("id", "status", "model", "created_at", "prompt", "last_event_id"), "x") | dict.fromkeys(
        ("finished_at", "started_at", "usage", "error", "tries", "result", "cancel_requested")
    )
    record |= {"metadata": {}, "stages": [], "pending_approvals": [], "cancel_reason": "wrong city\nstatus   succeeded"}
    async with FakeGateway(lambda _: Answer(orjson.dumps(record), 200, "application/json")) as gateway:
        shown = await ask(gateway, "show", "01J")

    assert "reason   wrong city status succeeded\n" in shown.stdout


async def test_share_prints_the_link_and_how_to_revoke_it() -> None:
    ticket = {"id": "0af7", "ticket": "eyJ", "expires_at": "2026-01-31T12:00:00Z",
              "links": {"page": "/?run=01J#ticket=eyJ", "events": "/runs/01J/events?ticket=eyJ"}}  # fmt: skip
    answers = (Answer(orjson.dumps(ticket), 200, "application/json"), Answer(b"", 204))
    async with FakeGateway.scripted(*answers) as gateway:
        made = await ask(gateway, "share", "01J", "--expires", "2h")
        revoked = await ask(gateway, "share", "01J", "--revoke", "0af7")
        url = gateway.url

    assert made.stdout == f"{url}/?run=01J#ticket=eyJ\n"
    assert "stagebus share 01J --revoke 0af7" in made.stderr
    assert orjson.loads(gateway.asked[0].body) == {"share": True, "ttl_s": 7200}
    assert (gateway.asked[1].method, gateway.asked[1].path) == ("DELETE", "/runs/01J/ticket/0af7")
    assert revoked.stdout == "link 0af7 is revoked\n"


async def test_tools_are_listed() -> None:
    tools = [{"name": "pay", "description": "Pay.\nMore.", "parameters": {"big": 2**70}, "requires_approval": True}]
    body = json.dumps({"tools": tools}).encode()
    async with FakeGateway(lambda _: Answer(body, 200, "application/json")) as gateway:
        listed = await ask(gateway, "tools")
        as_json = await ask(gateway, "tools", "--json")

    assert listed.stdout == "pay (waits for approval)  Pay.\n"
    assert json.loads(as_json.stdout) == tools[0]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 5), (403, 5), (404, 4), (409, 4), (422, 2), (429, 4), (500, 6), (503, 6)],
)
async def test_error_status_becomes_an_exit_code(status: int, code: int) -> None:
    async with FakeGateway(lambda _: Answer(b"{}", status, "application/problem+json")) as gateway:
        result = await ask(gateway, "show", "01J")

    assert exit_code_of(result.exception) == code


async def test_unreachable_gateway_exits_with_6_and_advice() -> None:
    async with FakeGateway.scripted() as gateway:
        url = gateway.url
    result = invoke("ls", "--url", url)

    assert exit_code_of(result.exception) == ExitCode.UNREACHABLE
    assert "stagebus up" in str(result.exception)


@pytest.mark.parametrize(
    ("event", "pending", "advice"),
    [
        ("approval_required", "pending_approvals", "approve 01J c"),
        ("call_deferred", "pending_calls", "result 01J c TEXT"),
    ],
)
async def test_parked_run_in_a_pipe_exits_with_7_and_advice(event: str, pending: str, advice: str) -> None:
    data = '{"stage_id":"tools","call_id":"c","name":"pay","arguments":"{}","expires_at":1,"kind":"client","ref":"7-1"}'
    asks = frame(1, event, data)
    record = {"pending_approvals": [], "pending_calls": []} | {pending: [{"call_id": "c", "kind": "client"}]}

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(RETRY + asks, is_left_open=True)
        return Answer(orjson.dumps(record), 200, "application/json")

    async with FakeGateway(answer) as gateway:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns immediately
            [sys.executable, "-m", "stagebus.cli", "tail", "01J", "--url", gateway.url],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _, err = await asyncio.to_thread(process.communicate, timeout=20)

    assert process.returncode == ExitCode.PARKED
    assert f"stagebus {advice}" in err
    assert "stagebus tail 01J --from 7-1" in err


async def test_completion_offers_models_tools_and_states() -> None:
    models = {"models": [{"id": "gpt-4.1"}, {"id": "demo:x$(id)"}, {"id": "qwen/3"}]}
    tools = {"tools": [{"name": "get_weather"}, {"name": "x;y"}]}

    def answer(asked: Asked) -> Answer:
        return Answer(orjson.dumps(models if asked.path == "/models" else tools), 200, "application/json")

    async with FakeGateway(answer) as gateway:
        context = SimpleNamespace(params={"url": gateway.url, "profile": None})
        complete = partial(asyncio.to_thread, complete_model, context)
        assert [word for word, _ in await complete("")] == ["gpt-4.1", "qwen/3"]
        assert [word for word, _ in await complete("extraction=a,synthesis=q")] == ["extraction=a,synthesis=qwen/3"]
        assert await asyncio.to_thread(complete_tool, context, "") == [("get_weather", "")]
    assert [word for word, _ in complete_status("queued,p")] == ["queued,parked"]
    assert set(STATES) == set(RunStatus)


async def test_run_id_completion_returns_safe_ids() -> None:
    runs = [
        {"id": "01JA", "status": "queued", "prompt": "$(id)"},
        {"id": "01JB", "status": "queued", "prompt": "01JA"},
        {"id": "01JA$(id)", "status": "queued", "prompt": ""},
    ]
    page = Answer(orjson.dumps({"runs": runs}), 200, "application/json")
    async with FakeGateway(lambda _: page) as gateway:
        context = SimpleNamespace(params={"url": gateway.url, "profile": None})
        assert await asyncio.to_thread(complete_run_id, context, "01JA") == [("01JA", "queued")]
    assert await asyncio.to_thread(complete_run_id, context, "01JA") == [], "an unreachable gateway is not an error"


def test_exit_codes_match_the_documentation() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()

    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_help_imports_no_slow_module() -> None:
    slow = ("asyncio", "httpx", "orjson", "pydantic", "redis", "rich")
    script = f"import sys, stagebus.cli.main; print([m for m in {slow!r} if m in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True) == "[]\n"
