"""The JavaScript client against a real gateway that is killed and connections that are cut."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from stagebus.client import AsyncRun, AsyncStagebus
from tests.clients.js.conftest import run_node
from tests.support.js_client import JsClient, js_clients
from tests.support.proxy import BufferingProxy, Proxy
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import System

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.faults]

WEATHER = "What is the weather in Paris and in Tokyo?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """Start one gateway and one worker."""
    async with System(tmp_path_factory.mktemp("js"), env={"STAGEBUS_SSE_RETRY_MS": "100"}) as running:
        yield running


async def test_each_event_arrives_once_through_gateway_restarts(client_js: Path, system: System) -> None:
    """Through a proxy that cuts connections at any byte, and a gateway that is killed and drained."""
    async with Proxy(int(httpx.URL(system.url).port or 0)) as proxy, js_clients() as clients:
        urls = [f"http://127.0.0.1:{proxy.port}"]
        run_id = await post_run(system.url, {"user_prompt": WEATHER, "model": "demo:delay_ms=60"})
        whole, cut = JsClient(clients, urls, run_id), JsClient(clients, urls, run_id, cut_max=4_000)
        following = asyncio.gather(whole.follow())
        for fault in (proxy.cut, lambda: system.restart_gateway(is_killed=True), proxy.cut, system.restart_gateway):
            seen = len(whole.events)
            await whole.until(lambda client, seen=seen: len(client.events) > seen)
            await (fault() or asyncio.sleep(0))
        await following
        await cut.follow()
        strict = await StrictClient(system.urls, run_id).follow()

    assert whole.events == cut.events == strict.events
    assert whole.events[-1].event == "done"
    assert whole.connections > 2
    assert cut.connections > 4


async def test_run_behind_a_buffering_proxy_is_followed_by_pages(client_js: Path, system: System) -> None:
    """Both clients notice it while the run is at work, say so, and receive each event once."""
    script = """
        import { Stagebus } from "@stagebus/client";
        const [baseUrl, id] = process.argv.slice(1);
        const startedAt = performance.now();
        let noticedMs = null;
        const events = [];
        for await (const update of new Stagebus({ baseUrl }).runs.resume(id).updates()) {
          if (update.name !== "connection") events.push([update.id, update.name]);
          else if (update.transport === "polling") noticedMs ??= performance.now() - startedAt;
        }
        console.log(JSON.stringify({ events, noticedMs }));
    """
    async with BufferingProxy(int(httpx.URL(system.url).port or 0), 1 << 20) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        run_id = await post_run(system.url, {"user_prompt": WEATHER, "model": "demo:delay_ms=60"})
        told: list[str] = []
        following = asyncio.to_thread(run_node, "--input-type=module", "--eval", script, url, run_id)
        async with AsyncStagebus(url, on_connection=lambda now: told.append(now.transport)) as bus:
            shown, received = await asyncio.gather(following, _read_all(bus.runs.resume(run_id)))
        strict = await StrictClient(system.urls, run_id).follow()
        js = json.loads(shown)

    wanted = [(event.id, event.event) for event in strict.events]
    assert [tuple(event) for event in js["events"]] == received == wanted
    assert js["noticedMs"] < 10_000
    assert told == ["polling"]
    assert proxy.streams == 2, "one of each client"


async def _read_all(run: AsyncRun) -> list[tuple[str, str]]:
    return [(event.id, event.event) async for event in run]


async def test_readme_examples_run(client_js: Path, system: System) -> None:
    (script, *others) = re.findall(
        r"^```js\n(.*?)^```$", (client_js / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    script = script.replace("http://127.0.0.1:8000", system.url)
    shown = await asyncio.to_thread(run_node, "--input-type=module", "--eval", script)
    assert "Paris" in shown.decode()
    assert "Tokyo" in shown.decode()

    run_id = await post_run(system.url, {"user_prompt": WEATHER})
    for other in others:
        before = f"""
            import {{ Stagebus }} from "@stagebus/client";
            const client = new Stagebus({{ baseUrl: {json.dumps(system.url)} }});
            const run = client.runs.resume({json.dumps(run_id)});
            const [runId, cursor, show] = [run.id, "0-1", () => undefined];
        """
        await asyncio.to_thread(run_node, "--input-type=module", "--eval", before + other)
