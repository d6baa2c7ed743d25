"""What a gateway process holds while it runs; built by the app's lifespan, handed to every handler."""

from dataclasses import dataclass

from redis.asyncio import Redis
from starlette.requests import Request

from gateway.auth.parts import Auth
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.tenant_limits import TenantLimiter
from shared.errors import Draining
from shared.providers import Providers
from shared.redis import storage_errors
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process's parts. None of them is state of a run: that is in Redis."""

    settings: Settings
    redis: Redis
    hub: Hub
    metrics: Metrics
    auth: Auth
    limiter: TenantLimiter
    providers: Providers

    async def check_ready(self) -> None:
        """Whether new clients may be sent here.

        Raises:
            Draining: this process shuts down.
            StorageUnavailable: Redis does not answer.
        """
        if self.hub.is_draining:
            raise Draining
        with storage_errors():
            await self.redis.ping()


def gateway_of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway
