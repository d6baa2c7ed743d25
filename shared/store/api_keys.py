"""Creates, finds, lists and revokes API keys.

    sbk_3f9c0a5d77e1_Zr0v…43 characters…        `sbk_<id>_<secret>`, shown once

The id finds the record. Of the secret only a keyed hash is stored. The secret has 256 random
bits, so a fast keyed hash is enough; a slow hash would only add latency to every request. The
hash does not depend on `STAGEBUS_SECRET`, so that setting can change while keys stay valid.

A record expires by Redis's own clock. `sb:keys` holds the ids by their last use.
"""

import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, Self

from stagebus.shared.domain.tenants import Scope
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import CLUSTER, partitioning_of
from stagebus.shared.storage.redis_client import Redis, read_time_ms

PREFIX: Final = "sbk_"
PATTERN: Final = re.compile(r"sbk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
NAME_MAX_CHARS: Final = 64

_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_SALT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's record. Times are Unix ms by Redis's clock; `expires_at` is 0 if the key does not expire."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    name: str
    created_at: int
    expires_at: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def has_secret(self, secret: str) -> bool:
        """Returns whether this is the key's secret. Takes constant time."""
        return compare_digest(_digest(secret, self.salt), self.digest)

    @classmethod
    def of(cls, key_id: str, fields: Mapping[bytes, bytes]) -> Self | None:
        """Parses the fields that HGETALL returned. Returns None if there are none: no such key."""
        if not fields:
            return None
        return cls(
            key_id=key_id,
            tenant=fields[b"tenant"].decode(),
            scopes=frozenset(Scope(name) for name in fields[b"scopes"].decode().split() if name in set(Scope)),
            name=fields[b"name"].decode(),
            created_at=int(fields[b"created_at"]),
            expires_at=int(fields[b"expires_at"]),
            salt=bytes.fromhex(fields[b"salt"].decode()),
            digest=bytes.fromhex(fields[b"hash"].decode()),
        )


def split(text: str) -> tuple[str, str] | None:
    """Splits a key into its id and its secret. Returns None if the text does not have the form of a key."""
    match = PATTERN.fullmatch(text)
    return (match[1], match[2]) if match else None


def _digest(secret: str, salt: bytes) -> bytes:
    return blake2b(secret.encode(), key=salt, digest_size=32).digest()


async def create(
    redis: Redis, *, tenant: str, scopes: Iterable[Scope], name: str = "", ttl_s: float | None = None
) -> tuple[ApiKey, str]:
    """Creates a key.

    Returns:
        The record, and the key's text, which is not stored and cannot be recovered.
    """
    key_id, secret, salt = (
        secrets.token_hex(_ID_BYTES),
        secrets.token_urlsafe(_SECRET_BYTES),
        secrets.token_bytes(_SALT_BYTES),
    )
    now_ms = await read_time_ms(redis)
    expires_at = 0 if ttl_s is None else now_ms + round(ttl_s * 1000)
    record = ApiKey(key_id, tenant, frozenset(scopes), name, now_ms, expires_at, salt, _digest(secret, salt))
    async with redis.pipeline(transaction=_is_one_slot(redis)) as pipe:
        pipe.hset(
            keys.api_key(key_id),
            mapping={
                "tenant": tenant,
                "scopes": " ".join(sorted(record.scopes)),
                "name": name,
                "created_at": now_ms,
                "expires_at": expires_at,
                "salt": salt.hex(),
                "hash": record.digest.hex(),
            },
        )
        if expires_at:
            pipe.pexpireat(keys.api_key(key_id), expires_at)
        pipe.zadd(keys.API_KEYS, {key_id: 0})
        await pipe.execute()
    return record, f"{PREFIX}{key_id}_{secret}"


async def find(redis: Redis, key_id: str) -> ApiKey | None:
    """Returns a key's record, or None if the key is unknown, revoked or expired."""
    return ApiKey.of(key_id, await redis.hgetall(keys.api_key(key_id)))  # type: ignore[misc]


async def find_living(redis: Redis, key_ids: Sequence[str]) -> set[str]:
    """Returns the ids of those keys that are neither revoked nor expired, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for key_id in key_ids:
            pipe.exists(keys.api_key(key_id))
        found = await pipe.execute()
    return {key_id for key_id, is_there in zip(key_ids, found, strict=True) if is_there}


async def record_use(redis: Redis, key_id: str) -> None:
    """Writes the time of a key's last use. Does nothing if the key was revoked in the meantime."""
    await redis.zadd(keys.API_KEYS, {key_id: round(time.time() * 1000)}, xx=True)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key, and the time of its last use, Unix ms; 0 if it was never used."""

    key: ApiKey
    last_used_at: int


async def list_keys(redis: Redis, tenant: str | None = None) -> list[ListedKey]:
    """Returns all valid keys, or those of one tenant, oldest first. Removes expired ids from the list."""
    ids_by_use = await redis.zrange(keys.API_KEYS, 0, -1, withscores=True)
    async with redis.pipeline(transaction=False) as pipe:
        for key_id, _ in ids_by_use:
            pipe.hgetall(keys.api_key(key_id.decode()))
        records = await pipe.execute()
    found, expired_ids = [], []
    for (key_id, last_used_at), fields in zip(ids_by_use, records, strict=True):
        record = ApiKey.of(key_id.decode(), fields)
        if record is None:
            expired_ids.append(key_id)
        elif tenant in (None, record.tenant):
            found.append(ListedKey(record, int(last_used_at)))
    if expired_ids:
        await redis.zrem(keys.API_KEYS, *expired_ids)
    return sorted(found, key=lambda listed: listed.key.created_at)


async def revoke(redis: Redis, key_id: str) -> ApiKey | None:
    """Revokes a key. Returns the record that it had, or None if there was none."""
    record = await find(redis, key_id)
    async with redis.pipeline(transaction=_is_one_slot(redis)) as pipe:
        pipe.delete(keys.api_key(key_id))
        pipe.zrem(keys.API_KEYS, key_id)
        await pipe.execute()
    return record


def _is_one_slot(redis: Redis) -> bool:
    """Returns whether a record and the list can be written in one step. On a cluster they have different slots."""
    return partitioning_of(redis) is not CLUSTER
