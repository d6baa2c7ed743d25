"""Admission of streams: the tenant's stream slot, and the watch on the client's credential, of one open stream."""

from collections.abc import Callable
from types import TracebackType

from stagebus.gateway.auth.credential_monitor import CredentialMonitor
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.tenant_limiter import TenantLimiter


class StreamAdmission:
    """Async context manager around the whole life of a stream; returns whether the tenant may open one more.

    A class with slots, not a generator: it stays in memory for each open stream.
    """

    __slots__ = ("_close", "_is_admitted", "_limiter", "_monitor", "_principal")

    def __init__(
        self, limiter: TenantLimiter, monitor: CredentialMonitor, principal: Principal, close: Callable[[], None]
    ) -> None:
        """`close` ends the stream; it is called when the principal's credential expires or is revoked."""
        self._limiter = limiter
        self._monitor = monitor
        self._principal = principal
        self._close = close

    async def __aenter__(self) -> bool:
        """Takes a slot and starts to watch the credential, if the tenant has a slot left."""
        self._is_admitted = await self._limiter.begin_stream(self._principal.tenant)
        if self._is_admitted:
            self._monitor.watch(self._principal, self._close)
        return self._is_admitted

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives both back."""
        if self._is_admitted:
            self._monitor.unwatch(self._close)
            await self._limiter.end_stream(self._principal.tenant)
