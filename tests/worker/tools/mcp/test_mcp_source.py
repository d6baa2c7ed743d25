"""Tools of MCP servers: real ones, made with the SDK, over HTTP and over pipes, in both of the protocol's ages."""

import asyncio
import functools
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mcp
import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.observability.redaction import remember
from stagebus.shared.runtime.net import AddressPolicy
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.mcp import mcp_pipes, mcp_source
from stagebus.worker.tools.mcp.mcp_source import McpSource
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources_file import McpEntry
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.processes import children_of, is_alive
from tests.support.system import ROOT, free_port
from tests.support.waiting import until, until_equal

STDIO = {"command": sys.executable, "args": ["-m", "tests.support.mcp_server", "stdio"], "cwd": str(ROOT)}


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[str, subprocess.Popen]]:
    """A server over HTTP: its address and its process."""
    args = [sys.executable, "-m", "tests.support.mcp_server", "http", str(port)]
    with subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip(), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (address, _):
        yield address


@pytest.fixture(params=["auto", "legacy"])
def age(request, monkeypatch):
    """The protocol before and since its requests stand alone."""
    monkeypatch.setattr(mcp_source, "Client", functools.partial(mcp.Client, mode=request.param))


@pytest.fixture
async def connect(monkeypatch):
    """Registries with one MCP server each."""
    monkeypatch.setattr(mcp_source, "BACKOFF_S", 0.05)
    registries = []

    async def connect(allow=("127.0.0.1",), **entry) -> ToolRegistry:
        source = McpSource("ref", McpEntry.model_validate(entry), Egress(AddressPolicy(allow), 2**20), 2**16)
        registries.append(ToolRegistry([], Settings(tool_timeout_s=10), sources=[source]))
        await registries[-1].start()
        return registries[-1]

    yield connect
    for registry in registries:
        await registry.aclose()


async def call(registry: ToolRegistry, name: str, arguments: str = "{}", report=lambda *_: None):
    return await registry.get(f"ref__{name}").call(arguments, ToolContext(run_id="r", call_id="c", report=report))


async def sum_of_one(registry: ToolRegistry):
    return (await call(registry, "add", '{"a": 1}')).content


@pytest.mark.usefixtures("age")
async def test_server_s_tools_are_offered_and_called(connect, url):
    registry = await connect(url=url)
    add = registry.get("ref__add")

    assert (add.description, add.idempotent) == ("Add two numbers.", True)
    assert add.parameters["required"] == ["a"]
    assert not registry.get("ref__wait").idempotent  # it says nothing of itself
    assert (await call(registry, "add", '{"a": 2, "b": 3}')).content == "5"
    assert (await call(registry, "with_dots_and_more")).content == "odd"


async def test_errors_of_a_tool_are_error_results(connect, url):
    registry = await connect(url=url)
    refused, unfit = await call(registry, "refuse"), await call(registry, "add", '{"a": "x"}')

    assert refused.is_error
    assert unfit.is_error
    assert "valid integer" in unfit.content


async def test_mcp_content_is_described_if_not_text_and_truncated(connect, url):
    registry = await connect(url=url)

    assert (await call(registry, "show")).content.splitlines() == [
        "see:", "[image: image/png, 5 bytes, not shown]", "[resource: file:///a.txt (text/plain)]",
    ]  # fmt: skip
    long = (await call(registry, "long")).content
    assert long.endswith("[cut: 200000 bytes, limit 65536]")
    assert len(long.encode()) <= 65536


async def test_tools_file_sets_approvals_and_idempotency(connect, url, caplog):
    registry = await connect(url=url, requires_approval=["re*", "wait"], idempotent=["with.*", "ad"])

    gated = [name for name in registry.names() if registry.get(name).requires_approval]
    assert gated == ["ref__wait", "ref__refuse"]
    repeatable = [name for name in registry.names() if registry.get(name).idempotent]
    assert repeatable == ["ref__with_dots_and_more"], "and not what only the server says"
    assert "no tool ad" in caplog.text


async def test_mcp_source_survives_an_unexpected_cancellation(connect, url, monkeypatch):
    """For example, a cancel scope of the SDK that is left in the wrong order."""
    really_use, cancels = McpSource._use_connection, iter([asyncio.CancelledError()])

    async def use_connection(source: McpSource) -> None:
        for cancelled in cancels:
            raise cancelled
        await really_use(source)

    monkeypatch.setattr(McpSource, "_use_connection", use_connection)
    registry = await connect(url=url)

    await until(lambda: "ref__refuse" in registry.names())


async def test_misspelt_approval_disables_the_tools_of_an_mcp_server(connect, url, caplog):
    registry = await connect(url=url, requires_approval=["wait", "ad"])

    assert [name for name in registry.names() if name.startswith("ref__")] == []
    assert "it has no tool ad" in caplog.text


async def test_approvals_may_name_mcp_tools_that_are_not_offered(connect, url):
    registry = await connect(url=url, requires_approval=["wait"], exclude=["wait"])

    assert registry.get("ref__refuse") is not None


async def test_file_limits_results_and_how_many_calls_are_at_work(connect, url, tmp_path: Path):
    registry = await connect(url=url, max_result_bytes=300, concurrency=1)
    assert (await call(registry, "long")).content.endswith("[cut: 200000 bytes, limit 300]")
    first = asyncio.create_task(call(registry, "wait", f'{{"seconds": 60, "folder": "{tmp_path}"}}'))
    await until((tmp_path / "began").exists)
    second = asyncio.create_task(call(registry, "add", '{"a": 1}'))
    assert not (await asyncio.wait({second}, timeout=0.2))[0], "another tool of the server waits, too"
    first.cancel()

    assert (await second).content == "2"


@pytest.mark.usefixtures("age")
async def test_progress_is_passed_on(connect, url):
    told = []
    registry = await connect(url=url)
    await call(registry, "count", '{"to": 4}', lambda *progress: told.append(progress))

    assert told == [("at 1", 0.25), ("at 2", 0.5), ("at 3", 0.75), ("at 4", 1.0)]


@pytest.mark.usefixtures("age")
async def test_cancelled_call_is_cancelled_at_the_server(connect, url, tmp_path: Path):
    registry = await connect(url=url)
    calling = asyncio.create_task(call(registry, "wait", f'{{"seconds": 60, "folder": "{tmp_path}"}}'))
    await until((tmp_path / "began").exists)
    calling.cancel()

    await until((tmp_path / "cancelled").exists)
    assert (await call(registry, "add", '{"a": 1}')).content == "2"


async def test_calls_share_a_connection_and_do_not_wait_for_each_other(connect, url, tmp_path: Path):
    registry = await connect(url=url)
    slow = asyncio.create_task(call(registry, "wait", f'{{"seconds": 60, "folder": "{tmp_path}"}}'))
    await until((tmp_path / "began").exists)
    replies = await asyncio.gather(*(call(registry, "add", f'{{"a": {number}}}') for number in range(20)))

    assert [int(reply.content) for reply in replies] == list(range(1, 21))
    assert not slow.done()
    slow.cancel()


@pytest.mark.usefixtures("age")
async def test_tool_that_comes_later_is_offered(connect, url, request):
    registry = await connect(**({"url": url} if request.node.callspec.id == "auto" else STDIO))
    before = registry.snapshot()
    registry.changed.clear()
    await call(registry, "learn")

    await asyncio.wait_for(registry.changed.wait(), 10)
    assert (await call(registry, "learnt")).content == "learnt"
    assert "ref__learnt" not in before.names()


async def test_only_wanted_tools_are_offered(connect, url):
    registry = await connect(url=url, include=["a*", "w*", "show"], exclude=["wa?t"])

    assert registry.names() == ("ref__add", "ref__with_dots_and_more", "ref__show")


async def test_mcp_process_gets_only_its_variables_and_ends_with_its_source(connect, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-worker")
    monkeypatch.setenv("FOR_IT", "for it alone")
    registry = await connect(**STDIO, env={"SECRET": {"env": "FOR_IT"}}, timeout_s=7)

    assert (await call(registry, "secret")).content == "for it alone"
    names = (await call(registry, "variables")).content.split()
    assert set(names) <= {"SECRET", "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LC_CTYPE"}
    assert registry.get("ref__secret").timeout_s == 7
    (server,) = (pid for pid, line in children_of(os.getpid()).items() if "tests.support.mcp_server stdio" in line)
    await registry.aclose()
    assert not is_alive(server)


async def test_mcp_server_that_dies_in_a_call_is_restarted(connect, tmp_path: Path):
    registry = await connect(**STDIO)
    waiting = asyncio.create_task(call(registry, "wait", f'{{"seconds": 60, "folder": "{tmp_path}"}}'))
    await until((tmp_path / "began").exists)
    died, cut = await call(registry, "die"), await waiting
    away = await call(registry, "add", '{"a": 1}')

    assert died.is_error
    assert "ref was lost during the call" in cut.content
    assert registry.find("ref__add")  # still on offer
    assert away.content == "2", "it waits for the server to start again"


async def test_server_that_is_down_at_the_start_is_found_when_it_is_up(connect, caplog):
    port = free_port()
    registry = await connect(url=f"http://127.0.0.1:{port}/mcp")
    assert registry.names() == ()
    assert "MCP server ref: " in caplog.text

    with serving(port) as (_, process):
        await until(lambda: "ref__add" in registry.names())
        assert (await call(registry, "add", '{"a": 1}')).content == "2"
        process.send_signal(signal.SIGKILL)
        process.wait()
        away = await call(registry, "add", '{"a": 1}')
        assert away.is_error
        assert "not connected at the moment" in away.content
    with serving(port):
        await until_equal(lambda: sum_of_one(registry), "2")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"command": "/no/such/program"}, "No such file"),
        ({"command": sys.executable, "args": ["-c", "pass"]}, "Connection closed"),
        ({"command": "true", "env": {"A": {"env": "STAGEBUS_NO_SUCH"}}}, "STAGEBUS_NO_SUCH is empty or not set"),
        ({"url": "http://10.0.0.1/mcp"}, "no public address"),
    ],
)
async def test_unreachable_mcp_server_is_logged_and_stops_nothing(connect, caplog, entry, words):
    registry = await connect(**entry)

    assert registry.names() == ()
    assert words in caplog.text


ENDLESS = """
import sys
for line in sys.stdin:
    while True:
        sys.stdout.write("x" * 65536)
"""


async def test_endless_mcp_message_is_limited(connect, caplog, monkeypatch):
    """The SDK's own reader collects it until memory is full, and copies all that has come with every part."""
    monkeypatch.setattr(mcp_pipes, "END_MAX_S", 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    registry = await connect(command=sys.executable, args=["-c", ENDLESS])

    assert registry.names() == ()
    assert "a message of more than 1048576 bytes" in caplog.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB
    await registry.aclose()
    assert not [line for line in children_of(os.getpid()).values() if "65536" in line]


async def test_server_that_heeds_no_end_is_killed(connect, monkeypatch):
    monkeypatch.setattr(mcp_pipes, "END_MAX_S", 0.1)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); from tests.support.mcp_server import main; main('stdio')"
    registry = await connect(command=sys.executable, args=["-c", f"{deaf}; signal.pause()"], cwd=str(ROOT))
    (server,) = (pid for pid, line in children_of(os.getpid()).items() if "signal.pause" in line)
    assert (await call(registry, "add", '{"a": 1}')).content == "2"
    await registry.aclose()

    assert not is_alive(server)


async def test_silent_mcp_server_delays_the_start_only_briefly(connect, monkeypatch):
    monkeypatch.setattr(mcp_source, "START_MAX_S", 0.05)
    registry = await connect(command="sh", args=["-c", "cat > /dev/null"])

    assert registry.names() == ()


async def test_stderr_of_a_server_is_logged_without_secrets(connect, caplog) -> None:
    program = "import os, sys; sys.stderr.write(f'no {os.environ[\"TOKEN\"]}\\n\\x1b[2J' + 'x' * 9000)"
    with caplog.at_level(logging.INFO):
        await connect(command=sys.executable, args=["-c", program], env={"TOKEN": "planted-mcp-token"})

    lines = [record.getMessage() for record in caplog.records if "MCP server ref: " in record.getMessage()]
    assert "MCP server ref: no ***" in lines
    assert any(line.startswith("MCP server ref: \x1b[2Jxxx") for line in lines), "the formatter escapes it"
    assert max(map(len, lines)) < 5000


async def test_secret_in_a_long_line_of_stderr_is_masked_wherever_a_read_ends(caplog) -> None:
    token = "planted-mcp-token-0123456789"
    remember(token)
    caplog.set_level(logging.INFO)
    for start in (4000, 4090, 5 * 4096):
        stderr = asyncio.StreamReader()
        logged = asyncio.create_task(mcp_pipes._log_stderr("ref", SimpleNamespace(stderr=stderr)))
        for piece in (f"{'x' * start} {token[:15]}", f"{token[15:]} {'y' * 9000}", "y\nnext\n"):
            stderr.feed_data(piece.encode())
            await until(lambda reader=stderr: not reader._buffer)
        stderr.feed_eof()
        await logged

        assert "planted" not in caplog.text
        assert token[15:] not in caplog.text
    assert [record.getMessage() for record in caplog.records].count("MCP server ref: next") == 3
