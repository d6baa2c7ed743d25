"""The gateway that knows its clients: by what a request carries, it tells who makes it."""

from typing import Final

from starlette.requests import Request

from gateway.auth.key_ring import KeyRing
from gateway.auth.principal import Principal
from shared.api_keys import PREFIX, ApiKey
from shared.refusals import Unauthenticated

CREDENTIAL_MAX_CHARS: Final = 8192


class Credentials:
    """Takes `Authorization: Bearer …` with an API key."""

    def __init__(self, key_ring: KeyRing) -> None:
        self._key_ring = key_ring

    async def authenticate(self, request: Request, *, takes_ticket: bool) -> Principal:  # noqa: ARG002
        """The one whose credential the request carries.

        Raises:
            Unauthenticated: it carries none, or one that does not hold.
            StorageUnavailable: it cannot be told at the moment.
        """
        header = request.headers.get("authorization")
        if header is None:
            raise Unauthenticated(
                "send an API key as `Authorization: Bearer …`; the command line reads STAGEBUS_API_KEY",
                is_bad_token=False,
            )
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > CREDENTIAL_MAX_CHARS:
            raise Unauthenticated("the Authorization header has to be `Bearer ` and a key")
        return await self._of_token(token)

    async def _of_token(self, token: str) -> Principal:
        if token.startswith(PREFIX):
            record = await self._key_ring.open(token)
            if record is not None:
                return of_key(record)
        raise Unauthenticated("this key is not known here: it never was, was revoked, or has expired")


def of_key(record: ApiKey) -> Principal:
    """The holder of a key."""
    return Principal(record.tenant, f"key:{record.key_id}", record.scopes, key_id=record.key_id)
