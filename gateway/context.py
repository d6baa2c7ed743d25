"""What a gateway process holds while it runs; built by the app's lifespan, handed to every handler."""

from dataclasses import dataclass

from starlette.requests import Request

from stagebus.gateway.auth.factory import Auth
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.tenant_limiter import TenantLimiter
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import Draining
from stagebus.shared.storage.redis_client import Redis, storage_errors


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
