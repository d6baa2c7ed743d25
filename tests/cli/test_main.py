"""The `stagebus` command: its requests, its output and its exit codes."""

import asyncio
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
from typer.testing import CliRunner, Result

from stagebus import client
from stagebus.cli.exit_codes import ExitCode, exit_code_of
from stagebus.cli.main import app
from tests.support.fake_gateway import DONE, RETRY, Answer, Asked, FakeGateway, frame

ROOT = Path(__file__).parent.parent.parent
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
    ],
)  # fmt: skip
async def test_decision_command_sends_the_decision(args: tuple[str, ...], sent: dict, said: str) -> None:
    async with FakeGateway(lambda _: Answer(b"{}", 202, "application/json")) as gateway:
        result = await ask(gateway, *args)

    assert result.stdout == said
    assert gateway.asked[0].path == "/runs/01J/approvals/c%2F1"
    assert orjson.loads(gateway.asked[0].body) == sent


@pytest.mark.parametrize(
    "args",
    [
        ("run", "hi", "--metadata", "novalue"),
        ("run", "hi", "--tool", "x", "--no-tools"),
        ("run", "hi", "--max-rounds", "0"),
        ("approve", "01J", "c", "--arguments", "[1]"),
        ("tail", "01J", "--url", "nowhere"),
    ],
)
def test_wrong_usage_exits_with_2(args: tuple[str, ...]) -> None:
    result = invoke(*args)

    assert (result.exit_code if result.exit_code == 2 else exit_code_of(result.exception)) == ExitCode.USAGE


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 4), (401, 5), (403, 5), (404, 4), (409, 4), (422, 4), (429, 4), (500, 6), (503, 6)],
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


async def test_parked_run_in_a_pipe_exits_with_7_and_advice() -> None:
    asks = frame(
        1, "approval_required", '{"stage_id":"tools","call_id":"c","name":"pay","arguments":"{}","expires_at":1}'
    )

    def answer(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(RETRY + asks, is_left_open=True)
        return Answer(b'{"pending_approvals": [{"call_id": "c"}]}', 200, "application/json")

    async with FakeGateway(answer) as gateway:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns immediately
            [sys.executable, "-m", "stagebus.cli", "tail", "01J", "--url", gateway.url],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _, err = await asyncio.to_thread(process.communicate, timeout=20)

    assert process.returncode == ExitCode.PARKED
    assert "stagebus approve 01J c" in err
    assert "stagebus tail 01J --from 7-1" in err


async def test_run_id_completion_returns_safe_ids() -> None:
    from stagebus.cli.shared_options import complete_run_id

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
