"""The gateway as an ASGI app: its parts, its routes, its start and stop.

`python -m stagebus.gateway` serves it with a drain that readiness probes can see. Any ASGI server can serve
`stagebus.gateway.app:app`, and `mount_gateway` puts it into another app.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from stagebus.gateway.api.headers import CORS_ACCEPTED, CORS_EXPOSED, CORS_MAX_AGE_S, CORS_METHODS
from stagebus.gateway.api.problems import HANDLERS
from stagebus.gateway.auth.factory import build_auth
from stagebus.gateway.context import Gateway
from stagebus.gateway.endpoint_table import ROUTES
from stagebus.gateway.gateway_metrics import Metrics
from stagebus.gateway.server.middleware import RequestMiddleware
from stagebus.gateway.server.uvicorn_server import drain_with_server
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.thread_relay import ThreadRelay
from stagebus.gateway.tenant_limiter import TenantLimiter
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings, load_settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.observability.otel_export import start_export
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import connections, keys, redis_client
from stagebus.shared.storage.connections import check_storage, open_pipelined
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.sweep import sweep_forever
from stagebus.shared.store.worker_capabilities import WorkerCapabilities


def create_app(settings: Settings | None = None) -> Starlette:
    """Returns the gateway's app. Its lifespan opens everything: a host that mounts the app has to enter it.

    Args:
        settings: by default those of the environment.

    Raises:
        BadProviders, BadWebhooks: the file is invalid.
    """
    configured = settings or load_settings()
    providers = Providers.from_settings(configured)
    webhooks = WebhookConfig.from_settings(configured)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _open_gateway(configured, providers, webhooks) as gateway:
            app.state.gateway = gateway
            try:
                yield
            finally:
                del app.state.gateway

    app = Starlette(routes=ROUTES, middleware=_middleware(configured), exception_handlers=HANDLERS, lifespan=lifespan)
    # A redirect would carry the client's own Host header, and no route ends in a slash.
    app.router.redirect_slashes = False
    return app


def mount_gateway(host: Starlette, path: str, settings: Settings | None = None) -> Starlette:
    """Mounts the gateway under a path of a Starlette or FastAPI app, and enters its lifespan in the host's.

    Args:
        path: without a slash at its end, such as `/ai`.
        settings: see `create_app`.

    Returns:
        The gateway's app.
    """
    app = create_app(settings)
    host_lifespan = host.router.lifespan_context

    @asynccontextmanager
    async def lifespan(host: Starlette) -> AsyncIterator[Any]:
        async with app.router.lifespan_context(app), host_lifespan(host) as state:
            yield state

    host.router.lifespan_context = lifespan
    host.mount(path, app)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_ACCEPTED,
        expose_headers=CORS_EXPOSED,
        # No cookies: a page of another origin sends its own key or ticket.
        allow_credentials=False,
        max_age=CORS_MAX_AGE_S,
    )
    return [Middleware(RequestMiddleware), *([cors] if settings.cors_origins else [])]


@asynccontextmanager
async def _open_gateway(settings: Settings, providers: Providers, webhooks: WebhookConfig) -> AsyncIterator[Gateway]:
    """Opens all parts in order and closes them in the opposite order.

    Raises:
        StorageUnfit, AccessUnset: Redis cannot carry runs, or settings are missing; the message says what to do.
        OtelMissing: STAGEBUS_OTEL is set and OpenTelemetry's SDK is not installed.
    """
    redis = connections.connect(settings)
    try:
        await check_storage(redis)
        hub = Hub(redis, settings)
        connection = open_pipelined(redis, settings.redis_timeout_s)
        limiter = TenantLimiter(connection, settings.tenant_limits)
        await hub.start()
        await limiter.start()
        name = uuid4().hex
        heartbeat = Heartbeat(
            redis, keys.GATEWAYS, name, lambda: {"streams_open": hub.open_streams, "webhooks": webhooks.digest}
        )
        beating = asyncio.create_task(heartbeat.run())
        limited = [name for name, entry in providers.by_name.items() if entry.concurrency_max is not None]
        metrics = Metrics(hub, settings.lease_s, limited)
        # Workers sweep, too. Runs that wait must be kept and ended while none is alive.
        sweeping = asyncio.create_task(sweep_forever(redis, settings, f"gateway {name}", metrics.sweeps))
        metrics.loop_lag.start()
        stop_export = None
        if settings.otel:
            stop_export = start_export("stagebus-gateway", name, metrics.registry if settings.otel_metrics else None)
        try:
            async with build_auth(settings, redis) as auth, drain_with_server(hub):
                yield Gateway(
                    settings,
                    redis,
                    hub,
                    ThreadRelay(hub, settings),
                    metrics,
                    auth,
                    limiter,
                    providers,
                    WorkerCapabilities(redis),
                    webhooks,
                )
        finally:
            metrics.loop_lag.stop()
            await cancel_and_wait(beating, sweeping)
            await limiter.stop()
            await hub.stop()
            await connection.aclose()
            if stop_export is not None:
                await asyncio.to_thread(stop_export)
    finally:
        await redis_client.close(redis)


def __getattr__(name: str) -> Starlette:
    """Creates `app` when a server asks for it, so that importing the module reads no settings."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
