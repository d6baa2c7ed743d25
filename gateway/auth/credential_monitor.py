"""Ends open streams when their key, ticket or session is revoked, or their session or token expires.

A request is authenticated once, when it arrives, but its stream may stay open for an hour.
So all keys, tickets and sessions of open streams are looked up together from time to time. This adds
no cost to sending an event.
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

CHECK_INTERVAL_S: Final = 10.0


class CredentialMonitor:
    """Checks the credentials of one gateway's open streams."""

    def __init__(self, api_keys: ApiKeyCache, revocations: Revocations) -> None:
        self._api_keys = api_keys
        self._revocations = revocations
        self._principal_by_close: dict[Callable[[], None], Principal] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def watched(self) -> int:
        """The number of streams that are watched."""
        return len(self._principal_by_close)

    def start(self) -> None:
        """Starts the periodic check."""
        self._task = asyncio.create_task(self._check_forever())

    async def stop(self) -> None:
        """Stops the periodic check."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    def watch(self, principal: Principal, close: Callable[[], None]) -> None:
        """Registers an open stream: `close` is called once the principal's credential has ended.

        A principal whose credential cannot end is not registered.
        """
        if principal.key_id or principal.ticket_id or principal.expires_at is not None:
            self._principal_by_close[close] = principal

    def unwatch(self, close: Callable[[], None]) -> None:
        """Removes a stream that has ended."""
        self._principal_by_close.pop(close, None)

    def end_ticket(self, ticket_for: str, ticket_id: str) -> None:
        """Closes the streams of a ticket that this gateway revoked; other gateways close theirs at their next check."""
        for close, principal in list(self._principal_by_close.items()):
            if (principal.ticket_for, principal.ticket_id) == (ticket_for, ticket_id):
                close()

    def end_session(self, session_id: str) -> None:
        """Closes the streams of a session that this gateway ended; other gateways close theirs at their next check."""
        for close, principal in list(self._principal_by_close.items()):
            if principal.session_id == session_id:
                close()

    async def check(self) -> None:
        """Looks up all watched credentials and closes the streams of those that have ended."""
        watched = dict(self._principal_by_close)
        key_ids = sorted({principal.key_id for principal in watched.values() if principal.key_id})
        names = sorted({principal.ticket_for for principal in watched.values() if principal.ticket_id})
        session_ids = sorted({principal.session_id for principal in watched.values() if principal.session_id})
        try:
            living = await self._api_keys.find_living(key_ids) if key_ids else set()
            revoked = await self._revocations.find(names) if names else {}
            ended = await self._revocations.find_sessions(session_ids) if session_ids else set()
        except StorageUnavailable:
            # Without Redis nothing is revoked and no event is sent, so streams stay open until the next check.
            living, revoked, ended = set(key_ids), {}, set()
        now = time.time()
        for close, principal in watched.items():
            if principal.key_id and principal.key_id not in living:
                logger.info("closing a stream of %s: its key was revoked or has expired", principal.subject)
                close()
            elif principal.ticket_id in revoked.get(principal.ticket_for, ()):
                logger.info("closing a stream of %s: the ticket was revoked", principal.subject)
                close()
            elif principal.session_id in ended:
                logger.info("closing a stream of %s: the session was ended", principal.subject)
                close()
            elif principal.expires_at is not None and principal.expires_at <= now:
                close()

    async def _check_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self.check()
            except Exception:
                # If the task ended here, streams would outlive their credentials.
                logger.exception("could not check the credentials of open streams; trying again")
