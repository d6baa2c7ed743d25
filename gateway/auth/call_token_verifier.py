"""Authentication by a call token, which stands where a key or a ticket may: in `Authorization`, or as `?ticket=`."""

from typing import Final

from starlette.requests import Request

from stagebus.gateway.auth import tickets
from stagebus.gateway.auth.authenticator import CREDENTIAL_MAX_CHARS
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.revocations import Revocations
from stagebus.shared.access_errors import Unauthenticated
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.runtime.call_tokens import CallTokens

SCOPES: Final = frozenset({Scope.CALLS})


class CallTokenVerifier:
    """Verifies the call tokens that workers made."""

    def __init__(self, settings: Settings, revocations: Revocations) -> None:
        self._tokens = CallTokens(settings.secrets)
        self._revocations = revocations

    async def verify(self, request: Request) -> Principal | None:
        """Returns the principal of a token's holder; None if the request has no call token.

        Raises:
            Unauthenticated: the token was revoked.
            StorageUnavailable: Redis is away, and the run's revocations are not cached.
        """
        verified = self._tokens.verify(text) if (text := _credential(request)) else None
        if verified is None:
            return None
        call, token_id = verified
        if await self._revocations.is_revoked(call.run_id, token_id):
            raise Unauthenticated("this call token was revoked")
        return Principal(call.tenant, "call token", SCOPES, ticket_for=call.run_id, ticket_id=token_id, call=call)


def _credential(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    text: str = token.strip() if scheme.lower() == "bearer" else getattr(request.state, tickets.STATE, None) or ""
    return text if len(text) <= CREDENTIAL_MAX_CHARS else ""
