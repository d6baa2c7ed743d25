"""A whole system on a cluster of three nodes: runs in all partitions, conversations, cancels, lists and statistics."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx

from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.storage.cluster_redis import ClusterRedis
from tests.support.cluster import Cluster
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System

PROMPT = {"user_prompt": "What is the weather in Paris?"}


async def test_system_on_a_cluster(
    start: Callable[..., Awaitable[System]], cluster: ClusterRedis, cluster_nodes: Cluster
) -> None:
    system = await start(gateways=2, workers=2, env={"STAGEBUS_REDIS_URL": f"redis+cluster://{cluster_nodes.nodes[0]}"})
    run_ids = [await post_run(system.url, PROMPT) for _ in range(12)]
    clients = [StrictClient(system.urls, run_id) for run_id in run_ids]
    await asyncio.gather(*(client.follow() for client in clients))

    assert {client.names()[-1] for client in clients} == {"done"}
    assert len({partition_of(run_id) for run_id in run_ids}) > 4
    assert (await get_run(system.url, run_ids[0]))["status"] == "succeeded"
    async with httpx.AsyncClient(base_url=system.url, timeout=20) as http:
        listed = (await http.get("/runs", params={"limit": 50})).json()
        assert [run["id"] for run in listed["runs"]] == sorted(run_ids, reverse=True)
        stats = await http.get("/stats")
        assert stats.json()["totals"]["runs_succeeded"] == len(run_ids), stats.text
        for path in ("/readyz", "/metrics", f"/runs/{run_ids[0]}/explain"):
            assert (await http.get(path)).status_code == 200, path
        assert (await http.get("/runs/events")).json()["code"] == "invalid_request", "the feed is refused, not silent"
        await converse(http)
        await repeat(http)
        await cancel_and_delete(http)


async def converse(http: httpx.AsyncClient) -> None:
    """Two turns of a conversation, the second of which waits for the first."""
    for prompt in ("Weather in Paris?", "And in Tokyo?"):
        body = {"thread_id": "trip", "user_prompt": prompt, "on_active": "enqueue"}
        assert (await http.post("/runs", json=body)).status_code == 202
    events = (await http.get("/threads/trip/events", params={"until": "idle"})).text
    assert events.count("event: done") == 2
    assert len((await http.get("/threads")).json()["threads"]) == 1
    assert (await http.delete("/threads/trip")).status_code in (202, 204)
    assert (await http.get("/threads/trip")).status_code == 404


async def repeat(http: httpx.AsyncClient) -> None:
    """The same request with an Idempotency-Key twice."""
    headers = {"Idempotency-Key": "once"}
    first, again = [(await http.post("/runs", json=PROMPT, headers=headers)).json()["id"] for _ in range(2)]
    assert again == first
    other = await http.post("/runs", json={"user_prompt": "Other"}, headers=headers)
    assert other.json()["code"] == "idempotency_conflict"


async def cancel_and_delete(http: httpx.AsyncClient) -> None:
    """A run that a worker holds is cancelled, then deleted."""
    slow = {**PROMPT, "model": "demo:delay_ms=200"}
    run_id = (await http.post("/runs", json=slow)).json()["id"]
    async with http.stream("GET", f"/runs/{run_id}/events") as stream:
        async for line in stream.aiter_lines():
            if line == "event: stage_started":
                assert (await http.post(f"/runs/{run_id}/cancel")).status_code == 202
            if line == "event: cancel":
                break
    assert (await http.delete(f"/runs/{run_id}")).status_code == 204
    assert (await http.get(f"/runs/{run_id}")).status_code == 404
