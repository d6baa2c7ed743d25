"""API keys: what Redis stores, expiry, revocation and lists."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.tenants import Scope, is_tenant
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys

READ = frozenset({Scope.RUNS_READ})


async def test_api_key_is_found_by_id_and_has_only_its_own_secret(redis: Redis) -> None:
    made, text = await api_keys.create(redis, tenant="acme", scopes=READ, name="ci")
    key_id, secret = api_keys.split(text) or ("", "")
    found = await api_keys.find(redis, key_id)

    assert found == made
    assert (found.tenant, found.scopes, found.name, found.expires_at) == ("acme", READ, "ci", 0)
    assert found.has_secret(secret)
    assert not found.has_secret(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    assert len({(await api_keys.create(redis, tenant="acme", scopes=READ))[1] for _ in range(50)}) == 50


async def test_api_key_secret_is_neither_stored_nor_shown(redis: Redis) -> None:
    made, text = await api_keys.create(redis, tenant="acme", scopes=READ)
    _, secret = api_keys.split(text) or ("", "")
    stored = await redis.hgetall(keys.api_key(made.key_id))

    assert secret not in f"{stored} {made} {await api_keys.list_keys(redis)}"
    assert made.digest.hex() not in repr(made)


@pytest.mark.parametrize(
    "text", ["", "sbk_", "sbk_3f9c0a5d77e1_", "sbk_3F9C0A5D77E1_" + "a" * 43, "sbk_3f9c0a5d77e1_" + "a" * 44,
             "sbk_3f9c0a5d77e1_" + "a" * 42 + "\n", "sbk_*{}: 3f9c0_" + "a" * 43, "skb_3f9c0a5d77e1_" + "a" * 43],
)  # fmt: skip
def test_malformed_api_key_is_not_split(text: str) -> None:
    assert api_keys.split(text) is None


async def test_api_key_expires_by_the_clock_of_redis(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ, ttl_s=60)

    assert 59_000 < await redis.pttl(keys.api_key(made.key_id)) <= 60_000
    assert made.expires_at - made.created_at == 60_000
    await redis.pexpire(keys.api_key(made.key_id), 0)
    assert await api_keys.find(redis, made.key_id) is None
    assert await api_keys.list_keys(redis) == []
    assert await redis.zcard(keys.API_KEYS) == 0, "its id is removed from the list"


async def test_revoked_api_key_does_not_return_when_its_use_is_recorded(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ)

    assert await api_keys.revoke(redis, made.key_id) == made
    assert await api_keys.revoke(redis, made.key_id) is None
    await api_keys.record_use(redis, made.key_id)
    assert await redis.keys("*") == []


async def test_api_key_list_has_the_last_use_and_filters_by_tenant(redis: Redis) -> None:
    mine, _ = await api_keys.create(redis, tenant="acme", scopes=READ)
    other, _ = await api_keys.create(redis, tenant="umbrella", scopes=READ)
    await api_keys.record_use(redis, mine.key_id)

    assert {listed.key.key_id for listed in await api_keys.list_keys(redis)} == {mine.key_id, other.key_id}
    (listed,) = await api_keys.list_keys(redis, "acme")
    assert listed.key == mine
    assert listed.last_used_at > 0
    assert (await api_keys.list_keys(redis, "umbrella"))[0].last_used_at == 0


async def test_find_living_returns_only_valid_api_keys(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ)

    assert await api_keys.find_living(redis, [made.key_id, "0" * 12]) == {made.key_id}


@pytest.mark.parametrize(
    ("name", "is_valid"),
    [("acme", True), ("A-1.b_c", True), ("x" * 64, True), ("", False), ("x" * 65, False), ("-a", False), ("a:b", False),
     ("a b", False), ("{a}", False), ("a*", False), ("a\n", False), ("é", False), (7, False), (None, False)],
)  # fmt: skip
def test_tenant_name_is_validated(name: object, is_valid: bool) -> None:
    assert is_tenant(name) is is_valid
