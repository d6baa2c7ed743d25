"""Open streams end when their key, ticket or token does, and not before."""

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
from stagebus.shared.domain.tenants import RunOwner, Scope
from stagebus.shared.log import sse
from stagebus.shared.store import api_keys, revoked_sessions, revoked_tickets
from tests.gateway.conftest import ClientOf
from tests.support.redis_calls import calls
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

READ = frozenset({Scope.RUNS_READ})


@pytest.fixture
async def key_id(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=READ))[0].key_id


def monitor_of(redis: Redis) -> CredentialMonitor:
    return CredentialMonitor(ApiKeyCache(redis), Revocations(redis))


@contextmanager
def watched(monitor: CredentialMonitor, principal: Principal, close: Callable[[], None]) -> Iterator[None]:
    monitor.watch(principal, close)
    yield
    monitor.unwatch(close)


async def test_monitor_closes_streams_of_a_revoked_key(redis: Redis, key_id: str) -> None:
    monitor, ended = monitor_of(redis), []
    of_key = Principal("acme", f"key:{key_id}", READ, key_id)
    of_ticket = Principal("acme", f"ticket of key:{key_id}", READ, key_id, ticket_for="r")
    with (
        watched(monitor, of_key, lambda: ended.append("key")),
        watched(monitor, of_ticket, lambda: ended.append("ticket")),
    ):
        await monitor.check()
        assert ended == []
        await api_keys.revoke(redis, key_id)
        await monitor.check()
        assert sorted(ended) == ["key", "ticket"]
    assert not monitor.watched


async def test_monitor_closes_streams_of_an_ended_session(redis: Redis) -> None:
    monitor, ended = monitor_of(redis), []
    expires_at = time.time() + 60
    first, second = (
        Principal("acme", "jwt:a", READ, expires_at=expires_at, session_id=session_id) for session_id in ("a", "b")
    )
    with watched(monitor, first, lambda: ended.append("a")), watched(monitor, second, lambda: ended.append("b")):
        await monitor.check()
        assert ended == []
        await revoked_sessions.revoke(redis, "a", 60)
        await monitor.check()
        assert ended == ["a"]
        monitor.end_session("b")
    assert ended == ["a", "b"]


async def test_monitor_closes_streams_of_an_expired_token(redis: Redis) -> None:
    monitor, ended = monitor_of(redis), []
    now = time.time()
    with (
        watched(monitor, Principal("acme", "jwt:a", READ, expires_at=now - 1), lambda: ended.append("expired")),
        watched(monitor, Principal("acme", "jwt:b", READ, expires_at=now + 60), lambda: ended.append("valid")),
        watched(monitor, Principal("default", "anyone", READ), lambda: ended.append("endless")),
    ):
        assert monitor.watched == 2, "a credential without an end is not watched"
        await monitor.check()
    assert ended == ["expired"]


async def test_monitor_closes_only_streams_of_the_revoked_ticket(redis: Redis, run: RunByHand) -> None:
    """The gateway that revokes it closes them immediately, others at their next check."""
    local, remote, ended = monitor_of(redis), monitor_of(redis), []
    tickets = [
        Principal("default", "ticket of jwt:a", READ, ticket_for=run.run_id, ticket_id=n) for n in ("one", "two")
    ]
    with ExitStack() as stack:
        for monitor, where in ((local, "local"), (remote, "remote")):
            for ticket in tickets:
                close = partial(ended.append, (where, ticket.ticket_id))
                stack.enter_context(watched(monitor, ticket, close))
        await revoked_tickets.revoke(redis, run.run_id, RunOwner("default"), "one", by="key:a")
        local.end_ticket(run.run_id, "one")
        assert ended == [("local", "one")]
        await remote.check()
        assert ended == [("local", "one"), ("remote", "one")]


async def test_monitor_closes_no_stream_while_redis_is_away(nowhere: Redis) -> None:
    monitor, ended = monitor_of(nowhere), []
    with watched(monitor, Principal("acme", "key:k", READ, "k"), lambda: ended.append("key")):
        await monitor.check()
    assert ended == []


async def test_monitor_looks_a_key_up_once_for_all_its_streams(redis: Redis, key_id: str) -> None:
    monitor = monitor_of(redis)
    principal = Principal("acme", f"key:{key_id}", READ, key_id)
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(watched(monitor, principal, [].clear))
        before = await calls(redis)
        await monitor.check()
        assert (await calls(redis) - before)["exists"] == 1


async def test_stream_of_a_revoked_key_ends_without_a_terminal_event(
    locked_app: Starlette, redis: Redis, client_of: ClientOf
) -> None:
    mine = await client_of("acme")
    run_id = (await mine.post("/runs", json={"user_prompt": "Hello"})).json()["id"]
    reading = asyncio.create_task(mine.get(f"/runs/{run_id}/events"))
    monitor = locked_app.state.gateway.auth.credential_monitor
    async with asyncio.timeout(10):
        await until(lambda: monitor.watched)
        (listed,) = await api_keys.list_keys(redis)
        await api_keys.revoke(redis, listed.key.key_id)
        await monitor.check()
        response = await reading

    assert [frame.event for frame in sse.decode(response.content)] in (["run_queued"], [])
    assert not monitor.watched


async def test_monitor_goes_on_after_a_failed_check(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagebus.gateway.auth.credential_monitor.CHECK_INTERVAL_S", 0.01)
    monitor, checks = monitor_of(redis), asyncio.Queue[None]()

    async def fail() -> None:
        checks.put_nowait(None)
        raise ValueError("a record that cannot be read")

    monkeypatch.setattr(monitor, "check", fail)
    monitor.start()
    async with asyncio.timeout(5):
        for _ in range(2):
            await checks.get()
    await monitor.stop()
