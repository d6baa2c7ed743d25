"""The parts of a running gateway, which the app's lifespan builds and every handler uses."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request

from stagebus.gateway.auth.factory import Auth
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.gateway.stream_admission import StreamAdmission
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.thread_relay import ThreadRelay
from stagebus.gateway.tenant_limiter import TenantLimiter
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.errors import Draining, StagebusError
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis, storage_errors
from stagebus.shared.store.worker_capabilities import WorkerCapabilities


class LifespanNotEntered(StagebusError):
    """The gateway is not started: it is mounted in another app that does not enter the gateway's lifespan, or has left it.

    It has no connection to Redis. Mount it with `stagebus.gateway.app.mount_gateway`, or enter its lifespan in the host's:
    `docs/embedding.md`. Until then every request gets this answer, except those for the meaning of a problem.
    """

    code = "lifespan_not_entered"
    title = "Gateway is not started"
    status_hint = 503

    def __init__(self) -> None:
        super().__init__(
            "the app that mounts the gateway does not enter the gateway's lifespan, so there is no connection to Redis;"
            " mount it with `stagebus.gateway.app.mount_gateway`, or enter its lifespan yourself: see docs/embedding.md"
        )


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one process. None of them is state of a run: that is in Redis."""

    settings: Settings
    redis: Redis
    hub: Hub
    threads: ThreadRelay
    metrics: Metrics
    auth: Auth
    limiter: TenantLimiter
    providers: Providers
    capabilities: WorkerCapabilities
    webhooks: WebhookConfig

    async def check_ready(self) -> None:
        """Checks that new clients may be sent here.

        Raises:
            Draining: this process is shutting down.
            StorageUnavailable: Redis does not answer, or accepts no writes, as after a failover.
        """
        if self.hub.is_draining:
            raise Draining
        with storage_errors():
            # A write that changes nothing. Unlike most, it succeeds on a full Redis, where streams still work.
            await self.redis.hdel(keys.GATEWAYS, "")  # type: ignore[misc]

    def admit_stream(self, principal: Principal, close: Callable[[], None]) -> StreamAdmission:
        """Returns the admission of a stream that `close` ends; the stream enters it."""
        return StreamAdmission(self.limiter, self.auth.credential_monitor, principal, close)


def gateway_of(request: Request) -> Gateway:
    """Returns the gateway that serves the request.

    Raises:
        LifespanNotEntered: the gateway was not started.
    """
    return started_gateway(request.app)


def started_gateway(app: Starlette) -> Gateway:
    """Returns the app's gateway.

    Raises:
        LifespanNotEntered: see there.
    """
    gateway: Gateway | None = getattr(app.state, "gateway", None)
    if gateway is None:
        raise LifespanNotEntered
    return gateway
