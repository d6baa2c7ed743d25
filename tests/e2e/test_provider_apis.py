"""Runs over the Responses and the Messages API through the whole system, whose worker is killed between two requests."""

import asyncio
from functools import partial
from pathlib import Path

import httpx
from redis.asyncio import Redis

from stagebus.shared.storage import keys
from tests.support.fault_tools import TOOLS
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System
from tests.support.waiting import until

APIS = ("responses", "messages")
# The demo refuses its calls if they come back without the reasoning before them.
MODEL = "demo:delay_ms=1,reasoning=1"
SEAL = "demo-seal-"


async def has_ttl(redis: Redis, key: str) -> bool:
    return int(await redis.ttl(key)) > 0


async def test_run_of_a_killed_worker_gives_the_models_reasoning_back_and_no_client_gets_it(tmp_path: Path) -> None:
    env = {"STAGEBUS_TOOLS": TOOLS, "FAULT_TOOLS_LOG": str(tmp_path / "tools.log")}
    async with System(tmp_path, workers=0, env=env) as system:
        providers = tmp_path / "providers.toml"
        providers.write_text(
            "\n".join(
                f'[providers.{api}]\nbase_url = "{system.demo_url}/v1"\napi = "{api}"\n'
                f'models = [{{ name = "{api}/*", id = "*" }}]\n'
                for api in APIS
            )
        )
        worker = system.add_worker({"STAGEBUS_PROVIDERS": str(providers), "STAGEBUS_MODEL": f"{APIS[0]}/{MODEL}"})
        await worker.ready("is ready for")
        prompt = 'call slow {"n": 1, "seconds": 1.0}'
        ids = [await post_run(system.url, {"user_prompt": prompt, "model": f"{api}/{MODEL}"}) for api in APIS]
        clients = [StrictClient(system.urls, run_id) for run_id in ids]
        following = [asyncio.create_task(client.follow()) for client in clients]
        for client in clients:
            await client.until(lambda c: any(event.event == "tool_call" for event in c.events))
        await worker.kill()
        worker.start()
        await asyncio.gather(*following)

        for run_id, client in zip(ids, clients, strict=True):
            assert client.names()[-1] == "done", client.events[-1]
            deltas = [e.data["tool_results"]["choices"] for e in client.events if e.event == "tool_completion_chunk"]
            assert any("reasoning_content" in choice["delta"] for choices in deltas for choice in choices)
            assert "what the tools found" in client.text("synthesis")
            kept = await system.redis.hgetall(keys.model_items(run_id))
            assert SEAL in kept[b"extraction"].decode()
            await until(partial(has_ttl, system.redis, keys.model_items(run_id)))  # a step after the run's end
        async with httpx.AsyncClient(base_url=system.url) as http:
            for run_id, client in zip(ids, clients, strict=True):
                pages = [
                    (await http.get(f"/runs/{run_id}{path}", headers={"accept": accept})).text
                    for path in ("", "/events", "/events?chunks=full", "/stages/extraction/events", "/export")
                    for accept in ("application/json", "text/event-stream")
                ]
                shown = [*pages, str(client.events), str(await get_run(system.url, run_id))]
                assert not any(SEAL in text for text in shown)
            assert SEAL not in (await http.get("/runs")).text
