"""Errors about access: who may do what, and how much of it."""

from typing import Final

from stagebus.shared.errors import StagebusError

# Names the person within the tenant for whom a request is made.
USER_HEADER: Final = "Stagebus-User"


class Unauthenticated(StagebusError):
    """The request carries no credential, or one that is not valid."""

    code = "unauthenticated"
    title = "Not authenticated"
    status_hint = 401
    is_bad_token = False  # whether the request carries a credential

    def __init__(self, detail: str, *, is_bad_token: bool = True) -> None:
        super().__init__(detail)
        self.is_bad_token = is_bad_token


class Forbidden(StagebusError):
    """The credential is valid, but lacks the scope that the operation needs."""

    code = "forbidden"
    title = "Forbidden"
    status_hint = 403
    scope = ""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs the scope {scope}, which the key or token does not have")
        self.scope = scope


class UserRequired(StagebusError):
    """The credential opens the runs of one user only, and the request names no user."""

    code = "user_required"
    title = "A user is required"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "this key or token has the scope runs:own, which opens the runs of one user, and the request has none: send "
            f"the user in the header {USER_HEADER} with a key that has the scope on_behalf, or use a token with a sub"
        )


class NotOnBehalf(StagebusError):
    """The request names a user, and its credential may not act for others."""

    code = "not_on_behalf"
    title = "May not act for a user"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            f"the header {USER_HEADER} needs the scope on_behalf, which this key or token does not have: leave the header "
            "out, or create a key with this scope for your own server"
        )


class BadUser(StagebusError):
    """The header with the user is empty, too long, no UTF-8, given twice, or has control characters."""

    code = "bad_user"
    title = "Bad user"
    status_hint = 400

    def __init__(self, max_chars: int) -> None:
        super().__init__(f"{USER_HEADER} names one user: 1 to {max_chars} characters in UTF-8, no control characters")


class LoopbackOnly(StagebusError):
    """The gateway has no authentication, so it answers only requests from its own machine."""

    code = "loopback_only"
    title = "Open to its own machine only"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "this gateway has no authentication, so it answers only as localhost, 127.0.0.1 or [::1]: set "
            "STAGEBUS_AUTH, or STAGEBUS_INSECURE=true to admit everyone"
        )


class HostNotAllowed(StagebusError):
    """The request's Host is a name that is not in `STAGEBUS_ALLOWED_HOSTS`."""

    code = "host_not_allowed"
    title = "Host name not allowed"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "this gateway does not answer under this host name: add the name to STAGEBUS_ALLOWED_HOSTS, or use its "
            "address"
        )


class CrossSite(StagebusError):
    """A browser reports that a page of another site makes the request."""

    code = "cross_site"
    title = "Request from another site's page"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "pages of other sites may not do this: send the key as `Authorization: Bearer …`, and add the site to "
            "STAGEBUS_CORS_ORIGINS"
        )


class OverLimit(StagebusError):
    """The tenant has reached a limit; `retry_after_s` says when to try again."""

    code = "over_limit"
    title = "Over a limit"
    status_hint = 429
    retryable = True
    retry_after_s: float = 5.0  # a guess, for limits that do not know it


class RateLimited(OverLimit):
    """The tenant, or the holder of a ticket, makes more requests per second than it may."""

    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, retry_after_s: float, *, is_ticket: bool = False) -> None:
        who = "this ticket is used for" if is_ticket else "this tenant makes"
        super().__init__(f"{who} more requests than it may; try again after Retry-After")
        self.retry_after_s = retry_after_s


class TooManyStreams(OverLimit):
    """The tenant, or the gateway process, has as many open streams as it may have."""

    code = "too_many_streams"
    title = "Too many open streams"

    def __init__(self) -> None:
        super().__init__("there are as many open streams as there may be; try again after Retry-After")


class TooManyRuns(OverLimit):
    """The tenant has as many runs in the queue as it may have."""

    code = "too_many_runs"
    title = "Too many queued runs"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"this tenant has {limit} runs in the queue, which is its limit; try again when some have started, or "
            "cancel some"
        )


class TokensUsedUp(OverLimit):
    """The tenant has used up its tokens of the day, or its active runs have reserved the rest."""

    code = "tokens_used_up"
    title = "Daily tokens used up"

    def __init__(self, limit: int, retry_after_s: float | None = None) -> None:
        """Describes the limit; without a time, active runs hold the rest and may give some of it back soon."""
        if retry_after_s is None:
            text = f"this tenant's active runs have reserved the rest of its {limit} tokens of the day; what they do not use "
            super().__init__(text + "is free again when they end; try again after Retry-After")
            return
        super().__init__(
            f"this tenant has used its {limit} tokens of the day, which ends at midnight UTC; try again after Retry-After"
        )
        self.retry_after_s = retry_after_s


class TooManyRevoked(StagebusError):
    """The caller has revoked as many tickets of this run as it may."""

    code = "too_many_revoked"
    title = "Too many revoked tickets"
    status_hint = 409

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"you have revoked {limit} tickets of this run, which is the limit: use another key, or revoke the key that "
            "the tickets were made with"
        )


class GatewayExposed(StagebusError):
    """A gateway without authentication may not listen on an address that others can reach."""

    code = "gateway_exposed"
    title = "Gateway would be exposed"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"on {host}, everyone who can reach it could run models and read every run. Set STAGEBUS_AUTH=keys and "
            "STAGEBUS_SECRET (see docs/security.md), listen on 127.0.0.1, or pass --insecure"
        )


class IssuerUnavailable(StagebusError):
    """The token issuer's key set cannot be fetched."""

    code = "issuer_unavailable"
    title = "Token issuer unavailable"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("the key set of the token issuer cannot be fetched at the moment; try again")


class AccessUnset(StagebusError):
    """A setting that authentication needs is missing. The gateway does not start."""

    code = "access_unset"
    title = "Authentication is not set up"
