"""What a gateway needs in order to tell who asks, built from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from gateway.auth.anyone import Anyone
from gateway.auth.credentials import Credentials
from gateway.auth.key_ring import KeyRing
from gateway.auth.principal import Authenticator
from gateway.auth.revocations import Revocations
from gateway.auth.sessions import Sessions
from gateway.auth.tickets import Tickets
from gateway.auth.vigil import Vigil
from shared.exposure import check_access
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.auth.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Auth:
    """One process's parts."""

    authenticator: Authenticator
    tickets: Tickets
    revocations: Revocations
    sessions: Sessions
    vigil: Vigil


@asynccontextmanager
async def open_auth(settings: Settings, redis: Redis) -> AsyncIterator[Auth]:
    """Build the parts; while they are open, streams end with what they rest on.

    Raises:
        AccessUnset: the settings lack something; the message says what.
    """
    check_access(settings)
    key_ring, tickets, sessions = KeyRing(redis), Tickets(settings), Sessions(settings)
    revocations = Revocations(redis)
    authenticator: Authenticator = Anyone(settings)
    if settings.auth != "open":
        authenticator = Credentials(
            key_ring=key_ring,
            revocations=revocations,
            sessions=sessions,
            tickets=tickets,
            tokens=_tokens(settings),
            takes_keys=settings.auth in ("keys", "both"),
        )
    vigil = Vigil(key_ring, revocations)
    vigil.start()
    try:
        yield Auth(authenticator, tickets, revocations, sessions, vigil)
    finally:
        await vigil.stop()


def _tokens(settings: Settings) -> "Tokens | None":
    if settings.auth not in ("jwt", "both"):
        return None
    from gateway.auth.tokens import Tokens  # an HTTP client comes with it: a tenth of a gateway's start

    return Tokens(settings)
