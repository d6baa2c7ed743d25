"""API keys as this process knows them: looked up in Redis, and remembered for a moment.

What is remembered bounds both ways: a request costs at most one round trip, and a key that
was revoked is good for `REMEMBER_S` more. Whose a key is never changes, so that is known for
longer: what its tenant's request costs elsewhere begins beside the look at the key.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from stagebus.gateway.auth.principal import Ahead
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, storage_errors
from stagebus.shared.store import api_keys
from stagebus.shared.store.api_keys import ApiKey

logger = logging.getLogger(__name__)

REMEMBER_S: Final = 5.0
REMEMBERED_MAX: Final = 10_000
# The last use of a key is written at most this often by each gateway.
USE_NOTED_EVERY_S: Final = 60.0

# Takes the place of a record that is not there, so that the answer takes as long.
_NO_KEY: Final = ApiKey("", "", frozenset(), "", 0, 0, salt=b"\0" * 16, digest=b"\0" * 32)


def _ignore(_tenant: str) -> None:
    pass


class ApiKeyCache:
    """Looks keys up."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._remembered: dict[str, tuple[float, ApiKey | None]] = {}
        self._use_noted: dict[str, float] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def open(self, text: str, ahead: Ahead = _ignore) -> ApiKey | None:
        """The record of the key that this is; None where it is none that holds.

        Args:
            ahead: told of the tenant only by those who know the secret.

        Raises:
            StorageUnavailable: it cannot be told at the moment.
        """
        parts = api_keys.split(text)
        if parts is None:
            return None
        key_id, secret = parts
        _, known = self._remembered.get(key_id, (0.0, None))
        record = await self.find(key_id, ahead if known and known.is_opened_by(secret) else _ignore)
        if not (record or _NO_KEY).is_opened_by(secret) or record is None:
            return None
        self._note_use(key_id)
        return record

    async def find(self, key_id: str, ahead: Ahead = _ignore) -> ApiKey | None:
        """A record by its id, for what was signed in the key's name.

        Raises:
            StorageUnavailable: it cannot be told at the moment.
        """
        now = time.monotonic()
        until, record = self._remembered.get(key_id, (0.0, None))
        if now < until:
            return record
        if record is not None:
            ahead(record.tenant)
        with storage_errors():
            record = await api_keys.find(self._redis, key_id)
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[key_id] = (now + REMEMBER_S, record)
        return record

    def remembers(self, key_id: str) -> bool:
        """Whether the key held when it was last looked up."""
        return self._remembered.get(key_id, (0.0, None))[1] is not None

    async def find_living(self, key_ids: Sequence[str]) -> set[str]:
        """Which keys still hold, as Redis says now.

        Raises:
            StorageUnavailable: it cannot be told at the moment.
        """
        with storage_errors():
            return await api_keys.find_living(self._redis, key_ids)

    def _note_use(self, key_id: str) -> None:
        """Have the last use written, beside the request."""
        now = time.monotonic()
        if now < self._use_noted.get(key_id, 0.0):
            return
        if len(self._use_noted) >= REMEMBERED_MAX:
            self._use_noted.clear()
        self._use_noted[key_id] = now + USE_NOTED_EVERY_S
        noting = asyncio.create_task(self._write_use(key_id))
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)

    async def _write_use(self, key_id: str) -> None:
        try:
            await api_keys.note_use(self._redis, key_id)
        except REDIS_AWAY as exc:
            logger.debug("the last use of key %s was not written: %s", key_id, exc)
