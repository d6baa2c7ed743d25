"""API keys by their id: looked up in Redis and cached.

The cache bounds two things: a request costs at most one round trip, and a revoked key works
for at most `CACHE_TTL_S` more.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from stagebus.shared.runtime.ttl_cache import TtlCache
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, storage_errors
from stagebus.shared.store import api_keys
from stagebus.shared.store.api_keys import ApiKey

logger = logging.getLogger(__name__)

CACHE_TTL_S: Final = 5.0
CACHE_ENTRIES_MAX: Final = 10_000
# Each gateway records the last use of a key at most this often.
USE_INTERVAL_S: Final = 60.0

# Stands for an unknown key. Its secret is compared, too, so that an unknown id takes as long as a wrong secret.
_NO_KEY: Final = ApiKey("", "", frozenset(), "", 0, 0, salt=b"\0" * 16, digest=b"\0" * 32)


class ApiKeyCache:
    """Looks up API keys, and records their use."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        # Unknown ids are cached as well, as _NO_KEY.
        self._keys: TtlCache[str, ApiKey] = TtlCache(CACHE_TTL_S, CACHE_ENTRIES_MAX)
        self._recent_uses: TtlCache[str, bool] = TtlCache(USE_INTERVAL_S, CACHE_ENTRIES_MAX)
        self._use_writes: set[asyncio.Task[None]] = set()

    async def verify(self, text: str) -> ApiKey | None:
        """Returns the record of a key, or None if the key is malformed, unknown, revoked or expired.

        Raises:
            StorageUnavailable: Redis is away and the key is not cached.
        """
        parts = api_keys.split(text)
        if parts is None:
            return None
        key_id, secret = parts
        record = await self._look_up(key_id)
        if not record.has_secret(secret) or record is _NO_KEY:
            return None
        self._record_use(key_id)
        return record

    async def find(self, key_id: str) -> ApiKey | None:
        """Returns a key's record by its id, for tickets and sessions that were made with the key.

        Raises:
            StorageUnavailable: Redis is away and the key is not cached.
        """
        record = await self._look_up(key_id)
        return None if record is _NO_KEY else record

    async def _look_up(self, key_id: str) -> ApiKey:
        record = self._keys.get(key_id)
        if record is None:
            with storage_errors():
                record = await api_keys.find(self._redis, key_id) or _NO_KEY
            self._keys[key_id] = record
        return record

    async def find_living(self, key_ids: Sequence[str]) -> set[str]:
        """Returns the ids of those keys that are neither revoked nor expired. Bypasses the cache.

        Raises:
            StorageUnavailable: Redis is away.
        """
        with storage_errors():
            return await api_keys.find_living(self._redis, key_ids)

    def _record_use(self, key_id: str) -> None:
        """Starts to write the key's last use; the request does not wait for it."""
        if self._recent_uses.get(key_id):
            return
        self._recent_uses[key_id] = True
        write = asyncio.create_task(self._write_use(key_id))
        self._use_writes.add(write)
        write.add_done_callback(self._use_writes.discard)

    async def _write_use(self, key_id: str) -> None:
        try:
            await api_keys.record_use(self._redis, key_id)
        except REDIS_AWAY as exc:
            logger.debug("the last use of key %s was not written: %s", key_id, exc)
