"""Call tokens: each lets its holder give the result of one call of a tool, once, and do nothing else.

    POST /runs/01M8…/calls/call_1/result?ticket=eyJ…

A worker makes the token and hands it to the tool, which passes it to whatever it starts outside. The token is a function
of the call, so a second attempt at the call has the same one. It is revoked as a ticket is, by its `jti`.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from stagebus.shared.runtime.signing import Signer

# The digits of a ticket's number, which a tag binds to its run.
NUMBER_CHARS: Final = 16


class CallIdentity(NamedTuple):
    """A call of a run: its id, and the id of the event that completed the model's answer with it."""

    tenant: str
    run_id: str
    call_id: str
    ref: str


class CallToken(NamedTuple):
    """A token's text, and the id by which it can be revoked."""

    text: str
    token_id: str


class CallTokens:
    """Issues call tokens and verifies them."""

    def __init__(self, signing_secrets: Sequence[str]) -> None:
        self._signer = Signer("call token", signing_secrets)
        self._id_signer = Signer("ticket id", signing_secrets)

    def issue(self, call: CallIdentity, expires_at: float) -> CallToken:
        """Returns the call's token; `expires_at` is in Unix s."""
        number = hashlib.sha256("\0".join(call).encode()).hexdigest()[:NUMBER_CHARS]
        token_id = number + self._id_signer.tag(f"{call.tenant} {call.run_id} {number}")
        claims = {"tenant": call.tenant, "run": call.run_id, "call": call.call_id, "ref": call.ref, "jti": token_id}
        return CallToken(self._signer.sign(claims, expires_at), token_id)

    def verify(self, text: str) -> tuple[CallIdentity, str] | None:
        """Returns the call of a token and the token's id; None if it was not issued here or has expired."""
        claims = self._signer.verify(text)
        if claims is None:
            return None
        return CallIdentity(claims["tenant"], claims["run"], claims["call"], claims["ref"]), claims["jti"]
