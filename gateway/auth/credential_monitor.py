"""Ends open streams whose key or ticket was revoked, or whose session or token has run out.

A request is judged once, when it comes; a stream may stay for an hour. So now and then all
keys and tickets that streams rest on are looked up at once: nothing is added to an event.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.revocations import Revocations
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.runtime.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 10.0


class CredentialMonitor:
    """Watches over the streams of one gateway."""

    def __init__(self, key_ring: ApiKeyCache, revocations: Revocations) -> None:
        self._key_ring = key_ring
        self._revocations = revocations
        self._watched: dict[Callable[[], None], Principal] = {}
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.create_task(self._look_forever())

    async def stop(self) -> None:
        """Look no more."""
        if self._looking is not None:
            await cancel_and_wait(self._looking)

    def watch(self, principal: Principal, close: Callable[[], None]) -> None:
        """Call `close` as soon as the principal does not hold any more."""
        if principal.key_id or principal.ticket_id or principal.expires_at is not None:  # else nothing could end
            self._watched[close] = principal

    def leave(self, close: Callable[[], None]) -> None:
        """The stream is over."""
        self._watched.pop(close, None)

    def end_ticket(self, run_id: str, ticket_id: str) -> None:
        """A ticket was taken back by this gateway: its streams here end now, those elsewhere at the next look."""
        for close, principal in list(self._watched.items()):
            if (principal.run_id, principal.ticket_id) == (run_id, ticket_id):
                close()

    async def look(self) -> None:
        """Look once."""
        watched = dict(self._watched)
        key_ids = sorted({principal.key_id for principal in watched.values() if principal.key_id})
        run_ids = sorted({principal.run_id for principal in watched.values() if principal.ticket_id})
        try:
            living = await self._key_ring.find_living(key_ids) if key_ids else set()
            revoked = await self._revocations.find(run_ids) if run_ids else {}
        except StorageUnavailable:
            living, revoked = set(key_ids), {}  # nothing can be revoked, or streamed, at the moment
        now = time.time()
        for close, principal in watched.items():
            if principal.key_id and principal.key_id not in living:
                logger.info("a stream of %s ends: its key was revoked or has expired", principal.subject)
                close()
            elif principal.ticket_id in revoked.get(principal.run_id, ()):
                logger.info("a stream of %s ends: it was taken back", principal.subject)
                close()
            elif principal.expires_at is not None and principal.expires_at <= now:
                close()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:
                # Without it no stream of this process would end with its key any more.
                logger.exception("keys and tickets of open streams could not be looked up; trying again")
