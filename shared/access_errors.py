"""Errors of who may do what, and how much of it: those of `shared/errors.py` that turn somebody away."""

from stagebus.shared.errors import StagebusError


class Unauthenticated(StagebusError):
    """Nobody knows who asks: no credential came, or one that does not hold."""

    code = "unauthenticated"
    title = "Not authenticated"
    status_hint = 401
    is_bad_token = False  # whether a credential came at all

    def __init__(self, detail: str, *, is_bad_token: bool = True) -> None:
        super().__init__(detail)
        self.is_bad_token = is_bad_token


class Forbidden(StagebusError):
    """It is known who asks, and that they may not do this."""

    code = "forbidden"
    title = "Forbidden"
    status_hint = 403
    scope = ""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs the scope {scope}, which the key or token that was sent does not have")
        self.scope = scope


class LoopbackOnly(StagebusError):
    """The gateway asks nobody who he is, so it answers nobody but its own machine."""

    code = "loopback_only"
    title = "Open to its own machine alone"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "this gateway is open, so it answers only under localhost, 127.0.0.1 or [::1]: set STAGEBUS_AUTH, or "
            "STAGEBUS_INSECURE=true to let everybody in"
        )


class CrossSite(StagebusError):
    """A browser says that another site's page asks."""

    code = "cross_site"
    title = "Asked by another site's page"
    status_hint = 403

    def __init__(self) -> None:
        super().__init__(
            "a page of another site may not do this: send the key as `Authorization: Bearer …`, and name the site in "
            "STAGEBUS_CORS_ORIGINS"
        )


class OverLimit(StagebusError):
    """A tenant has had its share; `retry_after_s` says when it is worth asking again."""

    code = "over_limit"
    title = "Over a limit"
    status_hint = 429
    retryable = True
    retry_after_s: float = 5.0  # where nobody knows


class RateLimited(OverLimit):
    """More requests a second than the tenant may make."""

    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("more requests than this tenant may make; ask again after Retry-After")
        self.retry_after_s = retry_after_s


class TooManyRuns(OverLimit):
    """As many runs wait in the queue as the tenant may have there."""

    code = "too_many_runs"
    title = "Too many runs are waiting"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} runs of this tenant wait already, which is all that it may have; "
            "ask again when some have begun, or cancel some"
        )


class TokensUsedUp(OverLimit):
    """The tenant's tokens of the day are used up."""

    code = "tokens_used_up"
    title = "The day's tokens are used up"

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"this tenant has used its {limit} tokens of the day, which ends at midnight UTC; ask again after Retry-After"
        )
        self.retry_after_s = retry_after_s


class TooManyRevoked(StagebusError):
    """As many tickets of a run were taken back as can be."""

    code = "too_many_revoked"
    title = "Too many tickets were taken back"
    status_hint = 409

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} tickets for this run were taken back already, which is all that can be: revoke the key that the "
            "others were made with"
        )


class GatewayExposed(StagebusError):
    """A gateway that lets everybody in may not listen where others can reach it."""

    code = "gateway_exposed"
    title = "Gateway would be exposed"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"listening on {host} lets everybody who can reach it run models and read every run. Set "
            "STAGEBUS_AUTH=keys and STAGEBUS_SECRET (docs/security.md tells how), listen on 127.0.0.1, or insist "
            "with --insecure"
        )


class IssuerUnavailable(StagebusError):
    """The keys of the issuer of tokens cannot be had."""

    code = "issuer_unavailable"
    title = "Token issuer unavailable"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("the keys of the tokens' issuer cannot be had at the moment; try again")


class AccessUnset(StagebusError):
    """The settings ask for authentication, but not for all that it needs. The gateway does not start."""

    code = "access_unset"
    title = "Authentication is not set up"
