"""Keys as a gateway knows them: what it asks Redis, what it remembers, and for how long."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.gateway.auth import api_key_cache as key_ring_module
from stagebus.gateway.auth.api_key_cache import REMEMBER_S, ApiKeyCache
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys
from tests.support.redis_calls import calls


class Clock:
    """Stands in for the module's `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_ring_module, "time", clock)
    return clock


@pytest.fixture
async def key(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=Scope))[1]


def id_of(key: str) -> str:
    return key.split("_")[1]


async def lookups(redis: Redis) -> int:
    return (await calls(redis))["hgetall"]


async def test_key_opens_and_others_do_not(redis: Redis, key: str) -> None:
    ring = ApiKeyCache(redis)
    record = await ring.open(key)

    assert record is not None
    assert record.tenant == "acme"
    for other in (key[:-1] + ("A" if key[-1] != "A" else "B"), f"sbk_{'0' * 12}_{key[17:]}", key[:-1], ""):
        assert await ring.open(other) is None


async def test_a_request_costs_one_look_at_the_most_and_the_next_ones_none(
    redis: Redis, key: str, clock: Clock
) -> None:
    ring = ApiKeyCache(redis)
    before = await lookups(redis)
    for _ in range(20):
        await ring.open(key)
        await ring.open(f"sbk_{'0' * 12}_{'a' * 43}")  # what is not there is remembered as well
    assert await lookups(redis) - before == 2
    clock.now += REMEMBER_S + 0.1
    await ring.open(key)
    assert await lookups(redis) - before == 3


async def test_revoked_key_is_good_for_a_moment_and_no_longer(redis: Redis, key: str, clock: Clock) -> None:
    ring = ApiKeyCache(redis)
    assert await ring.open(key)
    await api_keys.revoke(redis, id_of(key))
    clock.now += REMEMBER_S - 0.1
    assert await ring.open(key)
    clock.now += 0.2
    assert await ring.open(key) is None


async def test_last_use_is_written_once_a_minute_and_only_for_who_has_the_secret(
    redis: Redis, key: str, clock: Clock
) -> None:
    ring = ApiKeyCache(redis)
    await ring.open(key[:-1] + ("A" if key[-1] != "A" else "B"))
    assert not ring._noting
    for _ in range(5):
        await ring.open(key)
        await asyncio.gather(*ring._noting)
    first = await redis.zscore(keys.API_KEYS, id_of(key))
    await redis.zadd(keys.API_KEYS, {id_of(key): 1})
    await ring.open(key)
    assert first
    assert not ring._noting
    clock.now += key_ring_module.USE_NOTED_EVERY_S
    await ring.open(key)
    await asyncio.gather(*ring._noting)
    assert (await redis.zscore(keys.API_KEYS, id_of(key)) or 0) > 1


async def test_what_is_remembered_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring_module, "REMEMBERED_MAX", 5)
    ring = ApiKeyCache(redis)
    for number in range(20):
        await ring.open(f"sbk_{number:012x}_{'a' * 43}")

    assert len(ring._remembered) <= 5


async def test_without_redis_it_cannot_be_told(nowhere: Redis, key: str) -> None:
    with pytest.raises(StorageUnavailable):
        await ApiKeyCache(nowhere).open(key)
