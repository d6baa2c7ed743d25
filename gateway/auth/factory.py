"""Builds a gateway's authentication from its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagebus.gateway.auth.anonymous import AnonymousAuthenticator
from stagebus.gateway.auth.api_key_cache import ApiKeyCache
from stagebus.gateway.auth.authenticator import CredentialAuthenticator
from stagebus.gateway.auth.call_token_verifier import CallTokenVerifier
from stagebus.gateway.auth.credential_monitor import CredentialMonitor
from stagebus.gateway.auth.principal import Authenticator
from stagebus.gateway.auth.revocations import Revocations
from stagebus.gateway.auth.sessions import SessionCookies
from stagebus.gateway.auth.tickets import TicketSigner
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.startup_checks import check_access
from stagebus.shared.storage.redis_client import Redis

if TYPE_CHECKING:
    from stagebus.gateway.auth.jwt_verifier import JwtVerifier


@dataclass(frozen=True, slots=True)
class Auth:
    """The authentication of one gateway process."""

    authenticator: Authenticator
    tickets: TicketSigner
    revocations: Revocations
    sessions: SessionCookies
    credential_monitor: CredentialMonitor
    call_tokens: CallTokenVerifier


@asynccontextmanager
async def build_auth(settings: Settings, redis: Redis) -> AsyncIterator[Auth]:
    """Builds the authentication, and runs its credential monitor until the context ends.

    Raises:
        AccessUnset: a setting is missing; the message names it.
    """
    check_access(settings)
    api_keys, tickets, sessions = ApiKeyCache(redis), TicketSigner(settings), SessionCookies(settings)
    revocations = Revocations(redis)
    authenticator: Authenticator = AnonymousAuthenticator(settings)
    if settings.auth != "open":
        authenticator = CredentialAuthenticator(
            api_keys=api_keys,
            revocations=revocations,
            sessions=sessions,
            tickets=tickets,
            jwt_verifier=_build_jwt_verifier(settings),
            takes_keys=settings.auth in ("keys", "both"),
        )
    monitor = CredentialMonitor(api_keys, revocations)
    monitor.start()
    try:
        yield Auth(authenticator, tickets, revocations, sessions, monitor, CallTokenVerifier(settings, revocations))
    finally:
        await monitor.stop()


def _build_jwt_verifier(settings: Settings) -> "JwtVerifier | None":
    if settings.auth not in ("jwt", "both"):
        return None
    # Imported here because it brings an HTTP client, which takes a tenth of a gateway's start.
    from stagebus.gateway.auth.jwt_verifier import JwtVerifier

    return JwtVerifier(settings)
