"""Tickets for threads: what their holder may do, and how long."""

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from tests.gateway.api.test_thread_endpoints import THREAD, turn
from tests.gateway.conftest import ClientOf


async def ticket_of(owner: httpx.AsyncClient) -> dict[str, str]:
    issued: dict[str, str] = (await owner.post(f"{THREAD}/ticket")).json()
    return issued


async def test_only_who_may_give_results_makes_tickets_that_may(
    client_of: ClientOf, redis: Redis, settings: Settings
) -> None:
    owner, reader = await client_of("acme"), await client_of("acme", Scope.RUNS_READ)
    await turn(owner, redis, settings, "one")
    refused = await reader.post(f"{THREAD}/ticket", json={"calls": True})

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await owner.post(f"{THREAD}/ticket", json={"calls": True})).status_code == 200
    assert (await reader.post(f"{THREAD}/ticket")).status_code == 200


@pytest.mark.parametrize("is_revoked", [False, True])
async def test_ticket_of_a_deleted_thread_does_not_open_a_new_one_of_its_id(
    client_of: ClientOf, redis: Redis, settings: Settings, *, is_revoked: bool
) -> None:
    owner, guest = await client_of("acme"), await client_of("acme")
    guest.headers.pop("Authorization")
    await turn(owner, redis, settings, "one")
    issued = await ticket_of(owner)
    guest.params = {"ticket": issued["ticket"]}
    opened = await guest.get(THREAD)
    if is_revoked:
        await owner.delete(f"{THREAD}/ticket/{issued['id']}")
    await owner.delete(THREAD)
    run_id = await turn(owner, redis, settings, "not for the guest")
    urls = (THREAD, f"{THREAD}/events", f"/runs/{run_id}")
    statuses = {url: (await guest.get(url, params={"until": "idle"})).status_code for url in urls}
    guest.params = {"ticket": (await ticket_of(owner))["ticket"]}

    assert opened.status_code == 200
    assert set(statuses.values()) == {401}
    assert (await guest.get(f"/runs/{run_id}")).status_code == 200
