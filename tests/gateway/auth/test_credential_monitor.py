"""Open streams end with what they rest on, and with nothing else."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.credential_monitor import CredentialMonitor
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.revocations import Revocations
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.log import sse
from stagebus.shared.store import api_keys, revoked_tickets
from tests.gateway.conftest import ClientOf
from tests.support.redis_calls import calls
from tests.support.runs_by_hand import RunByHand

READ = frozenset({Scope.RUNS_READ})


@pytest.fixture
async def key_id(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=READ))[0].key_id


def vigil_of(redis: Redis) -> CredentialMonitor:
    return CredentialMonitor(ApiKeyCache(redis), Revocations(redis))


@contextmanager
def over(vigil: CredentialMonitor, principal: Principal, close: Callable[[], None]) -> Iterator[None]:
    vigil.watch(principal, close)
    yield
    vigil.leave(close)


async def test_stream_ends_with_its_key(redis: Redis, key_id: str) -> None:
    vigil, ended = vigil_of(redis), []
    of_key = Principal("acme", f"key:{key_id}", READ, key_id)
    of_ticket = Principal("acme", f"ticket of key:{key_id}", READ, key_id, run_id="r")
    with over(vigil, of_key, lambda: ended.append("key")), over(vigil, of_ticket, lambda: ended.append("ticket")):
        await vigil.look()
        assert ended == []
        await api_keys.revoke(redis, key_id)
        await vigil.look()
        assert sorted(ended) == ["key", "ticket"]
    assert not vigil._watched


async def test_stream_ends_with_its_token(redis: Redis) -> None:
    vigil, ended = vigil_of(redis), []
    now = time.time()
    with (
        over(vigil, Principal("acme", "jwt:a", READ, expires_at=now - 1), lambda: ended.append("over")),
        over(vigil, Principal("acme", "jwt:b", READ, expires_at=now + 60), lambda: ended.append("not yet")),
        over(vigil, Principal("default", "anyone", READ), lambda: ended.append("never")),
    ):
        assert len(vigil._watched) == 2, "what cannot end costs nothing"
        await vigil.look()
    assert ended == ["over"]


async def test_stream_ends_with_its_ticket_and_others_stay(redis: Redis, run: RunByHand) -> None:
    """At the gateway that took it back at once, at others when they look."""
    here, elsewhere, ended = vigil_of(redis), vigil_of(redis), []
    tickets = [Principal("default", "ticket of jwt:a", READ, run_id=run.run_id, ticket_id=n) for n in ("one", "two")]
    with ExitStack() as stack:
        for vigil, where in ((here, "here"), (elsewhere, "elsewhere")):
            for ticket in tickets:
                close = partial(ended.append, (where, ticket.ticket_id))
                stack.enter_context(over(vigil, ticket, close))
        await revoked_tickets.revoke(redis, run.run_id, "default", "one")
        here.end_ticket(run.run_id, "one")
        assert ended == [("here", "one")]
        await elsewhere.look()
        assert ended == [("here", "one"), ("elsewhere", "one")]


async def test_redis_away_ends_no_stream(nowhere: Redis) -> None:
    vigil, ended = vigil_of(nowhere), []
    with over(vigil, Principal("acme", "key:k", READ, "k"), lambda: ended.append("key")):
        await vigil.look()
    assert ended == []


async def test_many_streams_are_looked_after_at_once(redis: Redis, key_id: str) -> None:
    """A key is asked for once, whatever the number of its streams."""
    vigil = vigil_of(redis)
    principal = Principal("acme", f"key:{key_id}", READ, key_id)
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(over(vigil, principal, [].clear))
        before = await calls(redis)
        await vigil.look()
        assert (await calls(redis) - before)["exists"] == 1


async def test_open_stream_of_a_revoked_key_ends_without_an_end_of_the_run(
    locked_app: Starlette, redis: Redis, client_of: ClientOf
) -> None:
    mine = await client_of("acme")
    run_id = (await mine.post("/runs", json={"user_prompt": "Hello"})).json()["id"]
    reading = asyncio.create_task(mine.get(f"/runs/{run_id}/events"))
    vigil = locked_app.state.gateway.auth.vigil
    async with asyncio.timeout(10):
        while not vigil._watched:
            await asyncio.sleep(0.01)
        (listed,) = await api_keys.list_keys(redis)
        await api_keys.revoke(redis, listed.key.key_id)
        await vigil.look()
        response = await reading

    assert [frame.event for frame in sse.decode(response.content)] in (["run_queued"], [])
    assert not vigil._watched


async def test_look_that_fails_is_not_the_last(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagebus.gateway.auth.credential_monitor.LOOK_EVERY_S", 0.01)
    vigil, looks = vigil_of(redis), asyncio.Queue[None]()

    async def look() -> None:
        looks.put_nowait(None)
        raise ValueError("a record that cannot be read")

    monkeypatch.setattr(vigil, "look", look)
    vigil.start()
    async with asyncio.timeout(5):
        for _ in range(2):
            await looks.get()
    await vigil.stop()
