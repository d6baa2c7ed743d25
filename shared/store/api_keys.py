"""API keys: made, looked up, listed, revoked.

    sbk_3f9c0a5d77e1_Zr0v…43 characters…        `sbk_<id>_<secret>`, shown once

The id finds the record. Of the secret only a keyed hash is stored: it has 256 random bits,
so nobody can guess it, and a slow hash would cost every request what it saves nobody. The
hash does not depend on `STAGEBUS_SECRET`, so that one can be changed without new keys.

A record expires by Redis's own clock. `sb:keys` lists the ids by their last use.
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
from stagebus.shared.storage.redis_client import Redis

PREFIX: Final = "sbk_"
PATTERN: Final = re.compile(r"sbk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
NAME_MAX_CHARS: Final = 64

_ID_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_SALT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's record. Times are Unix ms by Redis's clock; `expires_at` is 0 for one that does not expire."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    name: str
    created_at: int
    expires_at: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def is_opened_by(self, secret: str) -> bool:
        """Whether this is the key's secret; takes the same time whatever is wrong with it."""
        return compare_digest(_digest(secret, self.salt), self.digest)

    @classmethod
    def of(cls, key_id: str, fields: Mapping[bytes, bytes]) -> Self | None:
        """The record out of HGETALL's fields; None where there is no such key."""
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
    """A key's id and its secret; None where the text cannot be a key."""
    match = PATTERN.fullmatch(text)
    return (match[1], match[2]) if match else None


def _digest(secret: str, salt: bytes) -> bytes:
    return blake2b(secret.encode(), key=salt, digest_size=32).digest()


async def create(
    redis: Redis, *, tenant: str, scopes: Iterable[Scope], name: str = "", ttl_s: float | None = None
) -> tuple[ApiKey, str]:
    """Make a key; the second value is the key itself, which nobody can ever read again."""
    key_id, secret, salt = (
        secrets.token_hex(_ID_BYTES),
        secrets.token_urlsafe(_SECRET_BYTES),
        secrets.token_bytes(_SALT_BYTES),
    )
    seconds, microseconds = await redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    expires_at = 0 if ttl_s is None else now_ms + round(ttl_s * 1000)
    record = ApiKey(key_id, tenant, frozenset(scopes), name, now_ms, expires_at, salt, _digest(secret, salt))
    async with redis.pipeline(transaction=True) as pipe:
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
    """A key's record; None where it never was, was revoked, or has expired."""
    return ApiKey.of(key_id, await redis.hgetall(keys.api_key(key_id)))  # type: ignore[misc]


async def find_living(redis: Redis, key_ids: Sequence[str]) -> set[str]:
    """Which of these keys still hold, in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for key_id in key_ids:
            pipe.exists(keys.api_key(key_id))
        found = await pipe.execute()
    return {key_id for key_id, is_there in zip(key_ids, found, strict=True) if is_there}


async def note_use(redis: Redis, key_id: str) -> None:
    """Write the last use of a key; one that was revoked meanwhile does not come back by it."""
    await redis.zadd(keys.API_KEYS, {key_id: round(time.time() * 1000)}, xx=True)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key and when it was last used, Unix ms; 0 for never."""

    key: ApiKey
    last_used_at: int


async def list_keys(redis: Redis, tenant: str | None = None) -> list[ListedKey]:
    """All keys that hold, or one tenant's, the oldest first."""
    listed = await redis.zrange(keys.API_KEYS, 0, -1, withscores=True)
    async with redis.pipeline(transaction=False) as pipe:
        for key_id, _ in listed:
            pipe.hgetall(keys.api_key(key_id.decode()))
        records = await pipe.execute()
    found, gone = [], []
    for (key_id, last_used_at), fields in zip(listed, records, strict=True):
        record = ApiKey.of(key_id.decode(), fields)
        if record is None:
            gone.append(key_id)
        elif tenant in (None, record.tenant):
            found.append(ListedKey(record, int(last_used_at)))
    if gone:
        await redis.zrem(keys.API_KEYS, *gone)
    return sorted(found, key=lambda one: one.key.created_at)


async def revoke(redis: Redis, key_id: str) -> ApiKey | None:
    """Make a key worthless; its record as it was, or None where there was none."""
    record = await find(redis, key_id)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.api_key(key_id))
        pipe.zrem(keys.API_KEYS, key_id)
        await pipe.execute()
    return record
