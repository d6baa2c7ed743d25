"""The cache of API keys: what it asks Redis, and how long entries stay valid."""

import asyncio

import pytest
from redis.asyncio import Redis

from stagebus.gateway.auth import api_key_cache
from stagebus.gateway.auth.api_key_cache import CACHE_TTL_S, USE_INTERVAL_S, ApiKeyCache
from stagebus.shared.domain.tenants import TENANT_WIDE
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys
from tests.support.fake_time import FakeTime
from tests.support.redis_calls import calls


@pytest.fixture
async def key(redis: Redis) -> str:
    return (await api_keys.create(redis, tenant="acme", scopes=TENANT_WIDE))[1]


def id_of(key: str) -> str:
    return key.split("_")[1]


async def lookups(redis: Redis) -> int:
    return (await calls(redis))["hgetall"]


async def test_api_key_is_verified_and_others_are_refused(redis: Redis, key: str) -> None:
    cache = ApiKeyCache(redis)
    record = await cache.verify(key)

    assert record is not None
    assert record.tenant == "acme"
    for other in (key[:-1] + ("A" if key[-1] != "A" else "B"), f"sbk_{'0' * 12}_{key[17:]}", key[:-1], ""):
        assert await cache.verify(other) is None


async def test_api_key_cache_looks_a_key_up_once_per_ttl(redis: Redis, key: str, cache_time: FakeTime) -> None:
    cache = ApiKeyCache(redis)
    before = await lookups(redis)
    for _ in range(20):
        await cache.verify(key)
        await cache.verify(f"sbk_{'0' * 12}_{'a' * 43}")  # unknown ids are cached as well
    assert await lookups(redis) - before == 2
    cache_time.now += CACHE_TTL_S + 0.1
    await cache.verify(key)
    assert await lookups(redis) - before == 3


async def test_revoked_api_key_is_refused_when_its_cache_entry_expires(
    redis: Redis, key: str, cache_time: FakeTime
) -> None:
    cache = ApiKeyCache(redis)
    assert await cache.verify(key)
    await api_keys.revoke(redis, id_of(key))
    cache_time.now += CACHE_TTL_S - 0.1
    assert await cache.verify(key)
    cache_time.now += 0.2
    assert await cache.verify(key) is None


async def test_api_key_use_is_recorded_once_a_minute_and_only_with_its_secret(
    redis: Redis, key: str, cache_time: FakeTime
) -> None:
    cache = ApiKeyCache(redis)
    await cache.verify(key[:-1] + ("A" if key[-1] != "A" else "B"))
    assert not cache._use_writes
    for _ in range(5):
        await cache.verify(key)
        await asyncio.gather(*cache._use_writes)
    first = await redis.zscore(keys.API_KEYS, id_of(key))
    await redis.zadd(keys.API_KEYS, {id_of(key): 1})
    await cache.verify(key)
    assert first
    assert not cache._use_writes
    cache_time.now += USE_INTERVAL_S
    await cache.verify(key)
    await asyncio.gather(*cache._use_writes)
    assert (await redis.zscore(keys.API_KEYS, id_of(key)) or 0) > 1


async def test_api_key_cache_is_bounded(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_key_cache, "CACHE_ENTRIES_MAX", 5)
    cache = ApiKeyCache(redis)
    for number in range(20):
        await cache.verify(f"sbk_{number:012x}_{'a' * 43}")

    assert len(cache._keys) <= 5


async def test_api_key_cannot_be_verified_while_redis_is_away(nowhere: Redis, key: str) -> None:
    with pytest.raises(StorageUnavailable):
        await ApiKeyCache(nowhere).verify(key)
