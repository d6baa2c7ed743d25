"""API keys: what is stored of them, and what becomes of them."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.tenants import Scope, is_tenant
from stagebus.shared.storage import keys
from stagebus.shared.store import api_keys

READ = frozenset({Scope.RUNS_READ})


async def test_key_is_found_by_its_id_and_opened_by_its_secret_alone(redis: Redis) -> None:
    made, text = await api_keys.create(redis, tenant="acme", scopes=READ, name="ci")
    key_id, secret = api_keys.split(text) or ("", "")
    found = await api_keys.find(redis, key_id)

    assert found == made
    assert (found.tenant, found.scopes, found.name, found.expires_at) == ("acme", READ, "ci", 0)
    assert found.has_secret(secret)
    assert not found.has_secret(secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    assert len({(await api_keys.create(redis, tenant="acme", scopes=READ))[1] for _ in range(50)}) == 50


async def test_nothing_that_is_stored_or_shown_holds_the_secret(redis: Redis) -> None:
    made, text = await api_keys.create(redis, tenant="acme", scopes=READ)
    _, secret = api_keys.split(text) or ("", "")
    stored = await redis.hgetall(keys.api_key(made.key_id))

    assert secret not in f"{stored} {made} {await api_keys.list_keys(redis)}"
    assert made.digest.hex() not in repr(made)


@pytest.mark.parametrize(
    "text", ["", "sbk_", "sbk_3f9c0a5d77e1_", "sbk_3F9C0A5D77E1_" + "a" * 43, "sbk_3f9c0a5d77e1_" + "a" * 44,
             "sbk_3f9c0a5d77e1_" + "a" * 42 + "\n", "sbk_*{}: 3f9c0_" + "a" * 43, "skb_3f9c0a5d77e1_" + "a" * 43],
)  # fmt: skip
def test_what_cannot_be_a_key_is_not_looked_up(text: str) -> None:
    assert api_keys.split(text) is None


async def test_expired_key_is_gone_by_redis_s_clock(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ, ttl_s=60)

    assert 59_000 < await redis.pttl(keys.api_key(made.key_id)) <= 60_000
    assert made.expires_at - made.created_at == 60_000
    await redis.pexpire(keys.api_key(made.key_id), 0)
    assert await api_keys.find(redis, made.key_id) is None
    assert await api_keys.list_keys(redis) == []
    assert await redis.zcard(keys.API_KEYS) == 0, "the list forgets it, too"


async def test_revoked_key_is_gone_and_no_use_brings_it_back(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ)

    assert await api_keys.revoke(redis, made.key_id) == made
    assert await api_keys.revoke(redis, made.key_id) is None
    await api_keys.record_use(redis, made.key_id)
    assert await redis.keys("*") == []


async def test_list_is_of_one_tenant_or_of_all_with_the_last_use(redis: Redis) -> None:
    mine, _ = await api_keys.create(redis, tenant="acme", scopes=READ)
    other, _ = await api_keys.create(redis, tenant="umbrella", scopes=READ)
    await api_keys.record_use(redis, mine.key_id)

    assert {one.key.key_id for one in await api_keys.list_keys(redis)} == {mine.key_id, other.key_id}
    (listed,) = await api_keys.list_keys(redis, "acme")
    assert listed.key == mine
    assert listed.last_used_at > 0
    assert (await api_keys.list_keys(redis, "umbrella"))[0].last_used_at == 0


async def test_living_keys_are_told_from_others(redis: Redis) -> None:
    made, _ = await api_keys.create(redis, tenant="acme", scopes=READ)

    assert await api_keys.find_living(redis, [made.key_id, "0" * 12]) == {made.key_id}


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("acme", True), ("A-1.b_c", True), ("x" * 64, True), ("", False), ("x" * 65, False), ("-a", False), ("a:b", False),
     ("a b", False), ("{a}", False), ("a*", False), ("a\n", False), ("é", False), (7, False), (None, False)],
)  # fmt: skip
def test_tenants_have_plain_names(name: object, is_one: bool) -> None:
    assert is_tenant(name) is is_one
