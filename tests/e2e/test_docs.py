"""Runs the commands and programs of the documentation against a live system."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from stagebus.shared.config.settings import Settings
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.shell import blocks, need, type_in
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System
from tests.support.third_party import THIRD_PARTY, need_third_party

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parent.parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
CLIENTS = (ROOT / "docs" / "clients.md").read_text()
DEFERRED_CALLS = (ROOT / "docs" / "deferred-calls.md").read_text()
THREADS = (ROOT / "docs" / "threads.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
WEBHOOKS = (ROOT / "docs" / "webhooks.md").read_text()
LONG = {"user_prompt": "What is the weather in Paris and in Tokyo?", "model": "demo:delay_ms=400"}


async def start_run(system: System) -> tuple[str, dict[str, str]]:
    """Starts a slow run; returns its id and the variables that the pages use."""
    run_id = await post_run(system.url, LONG)
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: c.names().count("tool_completion_chunk") >= 2)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    first = next(event.id for event in client.events if event.event == "tool_completion_chunk")
    return run_id, {"REDIS": system.redis_url, "URL": system.url, "RUN": run_id, "ID": first}


async def test_operations_page_commands_work(healthy: System) -> None:
    need("redis-cli")
    need("curl")
    run_id, env = await start_run(healthy)
    said = {}
    for block in blocks(OPERATIONS):
        said[block] = await type_in(block, **env)

    def output(text: str) -> str:
        return next(output for block, output in said.items() if text in block)

    assert run_id in output("ZRANGE sb:active")
    assert f"{run_id} running" in output("HMGET")
    assert run_id in output("stagebus ls")
    assert "What is the weather" in output("HGETALL")
    assert "extraction" in output("LRANGE")
    assert "run_started" in output("LRANGE")
    assert "tool_completion_chunk" in output('"($ID"')
    assert "tool_completion_chunk" in output("XREAD")
    assert "event: tool_completion_chunk" in output("--max-time")
    assert "id: " in output("SUBSCRIBE")
    assert run_id in output("-q weather")
    assert run_id in output("ZRANGE sb:queue")
    assert output("HGETALL sb:workers").count(run_id) == 2, "once in Redis and once over HTTP"
    assert run_id in output("curl -s -X POST")
    assert re.search(r"^sb:run:\{\w+\}:stage:\w+\t\d+$", output("sort -k2"), re.MULTILINE)
    assert "stagebus_redis_up 1.0" in output("readyz")
    assert output("$2 == -1") == "", "these keys have no TTL"


async def test_runbook_commands_work(healthy: System) -> None:
    need("redis-cli")
    need("curl")
    run_id, env = await start_run(healthy)
    scripts = blocks(RUNBOOK)
    outputs = await asyncio.gather(*(type_in(script, **env) for script in scripts))
    said = dict(zip(scripts, outputs, strict=True))

    def output(text: str) -> str:
        return next(output for script, output in said.items() if text in script)

    assert len(scripts) > 20
    assert f"run {run_id}: running" in output("stagebus explain $RUN")
    assert "stagebus_sweep_recent" in output("sweep_recent")
    assert "PONG" in output("PING")
    assert ":" in output("HKEYS sb:workers")
    assert "role:master" in output("INFO replication")


async def test_operations_page_cancels_a_run_without_a_gateway(healthy: System) -> None:
    need("redis-cli")
    run_id, env = await start_run(healthy)
    script = next(block for block in blocks(OPERATIONS) if "cancel.lua" in block)

    assert "asked" in await type_in(script, **env)
    client = await StrictClient(healthy.urls, run_id).follow()
    assert client.events[-1].event == "cancel"
    assert (await get_run(healthy.url, run_id))["status"] == "cancelled"


async def test_readme_curl_commands_resume_a_stream(healthy: System) -> None:
    need("curl")
    (script,) = (block for block in blocks(README) if "Last-Event-ID" in block)
    script = script.replace("http://127.0.0.1:8000", healthy.url)

    output = await type_in(script)
    ids = re.findall(r"^id: \d+-(\d+)$", output, re.MULTILINE)
    assert ids.count("1") == 1
    assert "event: done" in output
    assert [int(sequence) for sequence in ids] == list(range(1, len(ids) + 1)), (
        "the resumed stream has the rest, each event once"
    )


async def test_cli_page_commands_work(healthy: System, tmp_path: Path) -> None:
    """Runs all lines in one shell, since they build on each other; their files go to a temporary folder."""
    (script,) = blocks(CLI)
    output = await type_in(f"cd {tmp_path}\n{script}", URL=healthy.url, XDG_CONFIG_HOME=str(tmp_path))

    assert "here is what the tools found" in output
    assert (tmp_path / "events.jsonl").read_text().count('"event":"done"') == 1
    assert "metadata user=42" in output
    assert re.search(r"^01\w+  succeeded ", output, re.MULTILINE)
    assert '"metadata":{"user":"42"}' in output
    assert "done in " in output.splitlines()[-1]


async def test_threads_page_commands_work(healthy: System) -> None:
    need("curl")
    (script,) = blocks(THREADS)
    output = await type_in(script, URL=healthy.url)

    assert output.count("event: done") == 1, "the first stream has the first turn"
    assert "}2\n" in output, "the second one has both"
    assert "## Assistant" in output
    assert output.count('"title":"Weather abroad"') == 2
    assert output.endswith("204\n")


async def test_python_client_page_programs_work(healthy: System) -> None:
    scripts = [block.replace("http://127.0.0.1:8000", healthy.url) for block in blocks(PYTHON, "python")]
    outputs = await asyncio.gather(*(type_in('python -c "$SCRIPT"', SCRIPT=script) for script in scripts))

    assert len(outputs) == 7
    assert "get_weather" in outputs[0]
    assert "calls get_weather" in outputs[1]
    assert outputs[2].endswith("['alice']\n")
    assert "the blue one" in outputs[5]
    assert "And in Rome?" in outputs[6]


async def test_deferred_calls_page_commands_and_programs_work(healthy: System) -> None:
    need("curl")
    (commands,) = blocks(DEFERRED_CALLS)
    program, _ = (block.replace("http://127.0.0.1:8000", healthy.url) for block in blocks(DEFERRED_CALLS, "python"))
    by_hand, answered = await asyncio.gather(
        type_in(commands, URL=healthy.url), type_in('python -c "$SCRIPT"', SCRIPT=program)
    )

    assert by_hand.count("event: call_deferred") == by_hand.count("event: tool_result") == 1
    assert "event: done" in by_hand
    assert "Remember the milk." in answered


async def test_webhooks_page_reads_the_feed(healthy: System) -> None:
    """Its receivers are tested in tests/worker/webhooks/test_webhooks_page.py."""
    need("curl")
    await start_run(healthy)
    (curl,) = (block for block in blocks(WEBHOOKS) if "$URL" in block)
    (python,) = (block for block in blocks(WEBHOOKS, "python") if "runs.events" in block)

    streamed = await type_in(curl, URL=healthy.url)
    read = await type_in('python -c "$SCRIPT"', SCRIPT=python, STAGEBUS_URL=healthy.url)

    assert "event: run_started" in streamed
    assert '"last_event_id":' in streamed
    assert re.search(r"^run_ended 01\w+ \w+$", read, re.MULTILINE)


async def test_readme_tool_can_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks(README, "python")
    (tmp_path / "mytools.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    named = re.findall(r"STAGEBUS_TOOLS=(\S+)", README)

    registry = ToolRegistry.from_settings(Settings(tools=tuple(named[0].split(","))))
    try:
        assert "count_words" in registry.names()
        tool = registry.get("count_words")
        assert tool is not None
        assert (await tool.call('{"text": "one two  three"}', ToolContext(run_id="r", call_id="c"))).content == "3"
    finally:
        await registry.aclose()


async def test_links_between_documentation_pages_exist(healthy: System) -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        ROOT / "clients" / "js" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
    as_page = {"Accept": "application/json, */*"}  # the stream of a tenant's runs never ends
    async with httpx.AsyncClient(base_url=healthy.url, headers=as_page) as http:
        for page in pages:
            for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
            for path in set(re.findall(r"`GET (/[a-z./]*)`", page.read_text())):
                assert (await http.get(path)).status_code == 200, f"{page.name}: {path}"


async def test_quickstarts_of_other_protocols_work(healthy: System, tmp_path: Path) -> None:
    need_third_party()
    sources = [block.replace("http://127.0.0.1:8000", healthy.url) for block in blocks(CLIENTS, "python")]
    by_protocol = {name: next(source for source in sources if name in source) for name in ("responses", "chat")}
    names = ("responses", "@ai-sdk", "@ag-ui", "@durable-streams")
    for name in names:
        script = next(block for block in blocks(CLIENTS, "js") if name in block)
        (tmp_path / f"{names.index(name)}.mjs").write_text(script.replace("http://127.0.0.1:8000", healthy.url))
    (tmp_path / "node_modules").symlink_to(THIRD_PARTY / "node_modules")
    python, chat, javascript, ui_messages, agui, durable = await asyncio.gather(
        *(type_in('python -c "$SCRIPT"', SCRIPT=source) for source in by_protocol.values()),
        *(type_in(f"node {tmp_path}/{number}.mjs") for number in range(len(names))),
    )

    for output in (python, javascript):
        streamed, _, final = output.strip().rpartition("\ncompleted: ")
        assert "Tokyo" in final
        assert streamed == final
    streamed, _, final = chat.strip().rpartition("\nchatcmpl-")
    assert final.endswith(streamed)
    *texts, is_equal = ui_messages.strip().splitlines()
    assert "Tokyo" in texts[-1]
    assert is_equal == "true"
    assert "Tokyo" in agui
    assert "Tokyo" in durable
