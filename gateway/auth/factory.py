"""What a gateway needs in order to tell who asks, built from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagebus.gateway.auth.anonymous import AnonymousAuthenticator
from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.authenticator import CredentialAuthenticator
from stagebus.gateway.auth.credential_monitor import CredentialMonitor
from stagebus.gateway.auth.principal import Authenticator
from stagebus.gateway.auth.revocations import Revocations
from stagebus.gateway.auth.sessions import Sessions
from stagebus.gateway.auth.tickets import Tickets
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.startup_checks import check_access
from stagebus.shared.storage.redis_client import Redis

if TYPE_CHECKING:
    from stagebus.gateway.auth.jwt_verifier import JwtVerifier


@dataclass(frozen=True, slots=True)
class Auth:
    """One process's parts."""

    authenticator: Authenticator
    tickets: Tickets
    revocations: Revocations
    sessions: Sessions
    vigil: CredentialMonitor


@asynccontextmanager
async def open_auth(settings: Settings, redis: Redis) -> AsyncIterator[Auth]:
    """Build the parts; while they are open, streams end with what they rest on.

    Raises:
        AccessUnset: the settings lack something; the message says what.
    """
    check_access(settings)
    key_ring, tickets, sessions = ApiKeyCache(redis), Tickets(settings), Sessions(settings)
    revocations = Revocations(redis)
    authenticator: Authenticator = AnonymousAuthenticator(settings)
    if settings.auth != "open":
        authenticator = CredentialAuthenticator(
            key_ring=key_ring,
            revocations=revocations,
            sessions=sessions,
            tickets=tickets,
            tokens=_tokens(settings),
            takes_keys=settings.auth in ("keys", "both"),
        )
    vigil = CredentialMonitor(key_ring, revocations)
    vigil.start()
    try:
        yield Auth(authenticator, tickets, revocations, sessions, vigil)
    finally:
        await vigil.stop()


def _tokens(settings: Settings) -> "JwtVerifier | None":
    if settings.auth not in ("jwt", "both"):
        return None
    from stagebus.gateway.auth.jwt_verifier import (
        JwtVerifier,  # an HTTP client comes with it: a tenth of a gateway's start
    )

    return JwtVerifier(settings)
