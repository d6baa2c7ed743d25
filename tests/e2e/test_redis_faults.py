"""Faults of Redis: restarted, away, disconnected, full, and restored from an older copy; and a killed gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from stagebus.shared.storage import keys
from tests.support import snapshots
from tests.support.immortal_keys import immortal_keys
from tests.support.proxy import Proxy
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System
from tests.support.waiting import until_equal

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

TALK = {"user_prompt": "talk", "model": "demo:delay_ms=10,tokens=300"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    # A worker that reconnects waits for a third of the lease before it acquires runs that others have not renewed. On a
    # busy machine half a second is not enough for the others to renew.
    env = {"STAGEBUS_LEASE_S": "3"}
    async with System(tmp_path_factory.mktemp("system"), gateways=2, workers=2, env=env) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def system(shared: System) -> AsyncIterator[System]:
    """Two gateways and two workers. After each test no run is active and no key of a run lacks a TTL."""
    yield shared
    await until_equal(lambda: shared.redis.zcard(keys.ACTIVE), 0)
    await until_equal(lambda: shared.redis.zcard(keys.QUEUE), 0)
    assert await immortal_keys(shared.redis) == []


def chunks(client: StrictClient) -> int:
    return client.names().count("tool_completion_chunk")


@pytest.mark.parametrize("away_s", [0.0, 4.0], ids=["restarted", "away for longer than a lease"])
async def test_redis_restart_or_outage_loses_no_event(system: System, away_s: float) -> None:
    """The workers keep their runs, so no stage is restarted, and streams stay open."""
    port = system.valkey.port
    run_ids = [await post_run(system.urls[i % 2], TALK) for i in range(6)]
    clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
    following = asyncio.gather(*(client.follow() for client in clients))
    for client in clients:
        await client.until(lambda c: chunks(c) > 5)
    connections = sum(client.connections for client in clients)
    open_streams = await _open_streams(system.urls[1])
    waiting = asyncio.create_task(_get_waiting(system.urls[1], run_ids[0]))
    await until_equal(lambda: _open_streams(system.urls[1]), open_streams + 1)

    system.valkey.stop()
    if away_s:
        await _check_answers_while_away(system, run_ids[0], away_s)
    system.valkey.start()
    assert system.valkey.port == port
    await following

    assert (await waiting)["status"] == "succeeded", "a request that waits for the end waits through the outage"
    for client in clients:
        assert client.names()[-1] == "done"
        assert client.names().count("run_started") == 1, "its worker kept the run"
        assert client.text("extraction") == clients[0].text("extraction")
        assert client.gaps == 0
    assert sum(client.connections for client in clients) == connections, "no stream was closed"
    after = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()
    assert after.names()[-1] == "done"


async def _get_waiting(url: str, run_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=40) as http:
        return dict((await http.get(f"/runs/{run_id}", params={"wait": 30})).json())


async def _open_streams(url: str) -> float:
    async with httpx.AsyncClient(base_url=url) as http:
        metrics = (await http.get("/metrics")).text
    return float(next(line for line in metrics.splitlines() if line.startswith("stagebus_open_streams ")).split()[1])


async def _check_answers_while_away(system: System, run_id: str, away_s: float) -> None:
    end = asyncio.get_running_loop().time() + away_s
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        refused = await http.get(f"/runs/{run_id}")
        assert refused.status_code == 503
        assert refused.json()["code"] == "storage_unavailable"
        assert refused.headers["retry-after"]
        assert (await http.post("/runs", json=TALK)).status_code == 503
        assert (await http.get("/readyz")).status_code == 503
        async with http.stream("GET", f"/runs/{run_id}/events") as stream:
            assert stream.status_code == 200, "any other status would end a browser's EventSource for good"
    await asyncio.sleep(max(0.0, end - asyncio.get_running_loop().time()))


async def test_cut_redis_connections_and_lost_replies_lose_no_event(tmp_path: Path) -> None:
    """The worker's connections go through a proxy that cuts them, often between a write and its reply."""
    async with System(tmp_path, workers=0) as system, Proxy(system.valkey.port) as proxy:
        env = {"STAGEBUS_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}
        await system.add_worker(env).ready("is ready for")
        run_ids = [await post_run(system.url, TALK) for _ in range(8)]
        clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
        following = asyncio.gather(*(client.follow() for client in clients))
        while not following.done():
            await asyncio.wait([asyncio.ensure_future(asyncio.shield(following))], timeout=0.25)
            proxy.drop_replies = True
            await asyncio.wait([asyncio.ensure_future(asyncio.shield(following))], timeout=0.02)
            proxy.cut()
            proxy.drop_replies = False
        await following

    assert proxy.passed > 20, "many connections were cut"
    for client in clients:
        assert client.names()[-1] == "done"
        assert client.text("extraction") == clients[0].text("extraction")
        assert "stage_restarted" not in client.names()


async def test_lost_log_tail_gives_a_gap_and_the_run_completes(system: System) -> None:
    """Redis is replaced by a copy of some moments before, while the worker lives."""
    run_id = await post_run(system.url, TALK)
    merged, stage = StrictClient(system.urls, run_id), StrictClient(system.urls, run_id, "extraction")
    following = asyncio.gather(merged.follow(), stage.follow())
    await merged.until(lambda c: chunks(c) > 5)
    older = await snapshots.take(system.redis)
    await merged.until(lambda c: chunks(c) > 40)
    await snapshots.restore(system.redis, older)
    await following

    late = await StrictClient(system.urls, run_id).follow()
    assert late.names()[-1] == "done"
    assert merged.events == late.events, "the connected client has the same events as the log"
    assert stage.events == [e for e in late.events if e.data["stage_id"] == "extraction" or e.event == "done"]
    assert (await get_run(system.url, run_id))["result"]["text"] == late.text("extraction")


async def test_event_id_is_not_reused_after_a_lost_claim(tmp_path: Path) -> None:
    """The copy is older than the claim, so the run is queued again while its worker still writes."""
    async with System(tmp_path, workers=2) as system:
        run_id = await post_run(system.url, {**TALK, "model": "demo:delay_ms=10,tokens=200,first_token_ms=300"})
        client = StrictClient(system.urls, run_id)
        older = await snapshots.take(system.redis)
        following = asyncio.create_task(client.follow())
        await client.until(lambda c: chunks(c) > 5)
        seen = {event.id: event.data for event in client.events}
        await snapshots.restore(system.redis, older)
        await following

        late = await StrictClient(system.urls, run_id).follow()
    assert late.names()[-1] == "done"
    assert client.events == late.events
    for event in late.events:
        assert seen.get(event.id, event.data) == event.data, "an event id had two contents"


async def test_full_redis_refuses_new_runs_and_loses_no_event(system: System) -> None:
    run_id = await post_run(system.url, TALK)
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: chunks(c) > 5)
    await system.redis.config_set("maxmemory", "1mb")
    async with httpx.AsyncClient(base_url=system.url) as http:
        refused = await http.post("/runs", json=TALK)
    done, _ = await asyncio.wait({following}, timeout=1.5)
    await system.redis.config_set("maxmemory", "0")
    await following

    assert refused.status_code == 503
    assert refused.json()["code"] == "storage_full"
    assert not done, "the run waits until its events can be stored"
    assert client.names()[-1] == "done"
    assert "stage_restarted" not in client.names()


async def test_killed_gateway_with_open_streams_loses_no_event(system: System) -> None:
    run_ids = [await post_run(system.urls[1], TALK) for _ in range(10)]
    clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
    following = asyncio.gather(*(client.follow() for client in clients))
    for client in clients:
        await client.until(lambda c: chunks(c) > 5)
    await system.restart_gateway(0, is_killed=True)
    await system.restart_gateway(1)
    await following

    assert {client.names()[-1] for client in clients} == {"done"}
    assert sum(client.connections for client in clients) > len(clients)
