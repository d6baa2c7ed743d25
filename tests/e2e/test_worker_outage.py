"""Runs that wait while no worker, or nothing but Redis, is alive for longer than every TTL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from stagebus.shared.storage import keys
from tests.support.fault_tools import TOOLS
from tests.support.immortal_keys import immortal_keys
from tests.support.strict_client import StrictClient, cancel_run, get_run, post_run
from tests.support.system import System
from tests.support.waiting import until_equal

pytestmark = pytest.mark.faults

QUEUE_WAIT_S = 16
DECIDED_S = 12  # after the outage began; from then on the run may wait for QUEUE_WAIT_S
LIVE_TTL_S = 19  # the least that the other settings allow
RETENTION_S = 60
ENV = {
    "STAGEBUS_QUEUE_WAIT_MAX_S": str(QUEUE_WAIT_S),
    "STAGEBUS_APPROVAL_WAIT_S": str(QUEUE_WAIT_S),
    "STAGEBUS_RUN_TIMEOUT_S": "3",
    "STAGEBUS_RUN_TIMEOUT_MAX_S": "3",
    "STAGEBUS_LIVE_TTL_S": str(LIVE_TTL_S),
    "STAGEBUS_RETENTION_S": str(RETENTION_S),
    "STAGEBUS_TOOLS": TOOLS,
    "STAGEBUS_APPROVALS": "pay",
}
PAYING = {"user_prompt": 'call pay {"n": 1, "seconds": 0}', "model": "demo:delay_ms=0"}
LONG = {"user_prompt": "talk", "model": "demo:delay_ms=50,tokens=600"}


async def status(system: System, run_id: str) -> str:
    return str((await get_run(system.url, run_id))["status"])


async def approve(system: System, run_id: str) -> None:
    async with httpx.AsyncClient(base_url=system.url, timeout=10) as http:
        (call,) = (await http.get(f"/runs/{run_id}")).json()["pending_approvals"]
        answer = await http.post(f"/runs/{run_id}/approvals/{call['call_id']}", json={"decision": "approve"})
        assert answer.status_code == 202


async def test_runs_survive_an_outage_that_is_longer_than_every_ttl(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of the workers alone, and of everything but Redis: two systems at a time, as either outage takes 20 s."""
    folders = tmp_path_factory.mktemp("workers"), tmp_path_factory.mktemp("all")
    async with running(folders[0]) as one, running(folders[1]) as other:
        await asyncio.gather(_outage_of_workers(one), _outage_of_all_but_redis(other))


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[System]:
    async with System(folder, env={**ENV, "FAULT_TOOLS_LOG": str(folder / "tools.log")}) as system:
        yield system
        assert await immortal_keys(system.redis) == []


async def _outage_of_workers(system: System) -> None:
    """The gateway sweeps. A worker that comes back finishes the run that a person decided on meanwhile."""
    parked, cancelled, cut = [await post_run(system.url, body) for body in (PAYING, LONG, LONG)]
    clients = [StrictClient(system.urls, run_id) for run_id in (cancelled, cut)]
    following = [asyncio.create_task(client.follow()) for client in clients]
    for client in clients:
        await client.until(lambda c: "tool_completion_chunk" in c.names())
    await until_equal(lambda: status(system, parked), "parked")
    await system.workers[0].kill()
    clock = asyncio.get_running_loop().time
    began = clock()
    await cancel_run(system.url, cancelled)
    queued = await post_run(system.url, {"user_prompt": "hi"})

    assert (await following[0]).names()[-1] == "cancel"
    assert clock() - began < DECIDED_S, "it ends as soon as its lease is gone"
    await asyncio.sleep(began + DECIDED_S - clock())
    await approve(system, parked)
    assert (await StrictClient(system.urls, queued).follow()).names() == ["run_queued", "error"]
    assert clock() - began > QUEUE_WAIT_S - 1
    assert (await following[1]).names()[-1] == "error"
    for run_id in (queued, cut):
        assert (await get_run(system.url, run_id))["error"]["code"] == "queue_timeout"
    await asyncio.sleep(max(0.0, began + LIVE_TTL_S + 0.5 - clock()))
    assert await status(system, parked) == "parked"
    system.add_worker()
    last = (await StrictClient(system.urls, parked).follow()).events[-1]
    assert last.event == "done", last.data


async def _outage_of_all_but_redis(system: System) -> None:
    await system.workers[0].kill()
    run_id = await post_run(system.url, {"user_prompt": "hi"})
    await system.gateways[0].kill()
    await system.redis.pexpire(keys.runs("default"), 1)  # as if the longest TTL, that of the lists, had passed
    await asyncio.sleep(LIVE_TTL_S)
    await system.restart_gateway()

    assert (await StrictClient(system.urls, run_id).follow()).names() == ["run_queued", "error"]
    async with httpx.AsyncClient(base_url=system.url) as http:
        assert (await http.get(f"/runs/{run_id}")).json()["error"]["code"] == "queue_timeout"
