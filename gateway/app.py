"""The gateway as an ASGI app: its parts, its routes, its start and stop.

`uvicorn gateway.app:app` serves it; `python -m gateway` does so with a drain that readiness
probes can see.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute, Route

from gateway import routes
from gateway.access import Access
from gateway.auth.parts import open_auth
from gateway.handlers import access, approvals, ops, runs, stream
from gateway.headers import CORS_ACCEPTED, CORS_EXPOSED, CORS_MAX_AGE_S, CORS_METHODS
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.problems import HANDLERS
from gateway.resource import Resource
from gateway.server import drain_with_server
from gateway.state import Gateway
from gateway.tenant_limits import TenantLimiter
from shared import keys
from shared import redis as redis_connections
from shared.line import Line
from shared.presence import Presence
from shared.providers import Providers
from shared.redis import check_server
from shared.settings import Settings, load_settings
from shared.tasks import cancel_and_wait

# The page in a third of its bytes. On these two routes alone: a stream is never compressed.
_COMPRESSED = (Middleware(GZipMiddleware),)

ROUTES: tuple[BaseRoute, ...] = (
    Route(routes.RUNS, Resource(GET=runs.list_runs, POST=runs.create_run)),
    Route(routes.RUN, Resource(GET=runs.get_run)),
    Route(routes.RUN_EVENTS, Resource(GET=stream.stream_run)),
    Route(routes.STAGE_EVENTS, Resource(GET=stream.stream_stage)),
    Route(routes.RUN_CANCEL, Resource(POST=runs.cancel_run)),
    Route(routes.RUN_APPROVAL_ROUTE, Resource(POST=approvals.decide_call)),
    Route(routes.RUN_TICKET, Resource(POST=access.create_ticket)),
    Route(routes.RUN_TICKET_ONE, Resource(DELETE=access.revoke_ticket)),
    Route(routes.SESSION, Resource(POST=access.create_session, GET=access.get_session, DELETE=access.end_session)),
    Route(routes.TOOLS, Resource(GET=ops.list_tools)),
    Route(routes.MODELS, Resource(GET=ops.list_models)),
    Route(routes.STATS, Resource(GET=ops.get_stats)),
    Route(routes.HEALTH, Resource(GET=ops.get_health)),
    Route(routes.READY, Resource(GET=ops.get_ready)),
    Route(routes.METRICS, Resource(GET=ops.get_metrics)),
    Route(routes.EVENT_SCHEMA, Resource(GET=ops.get_event_schema)),
    Route(routes.OPENAPI, Resource(GET=ops.get_openapi)),
    Route(routes.PROBLEM, Resource(GET=ops.get_problem_type)),
    Route(routes.PAGE, Resource(GET=ops.get_page), middleware=_COMPRESSED),
    Route(routes.STATIC, Resource(GET=ops.get_static), middleware=_COMPRESSED),
)


def create_app(settings: Settings | None = None) -> Starlette:
    """The app; nothing is opened before its lifespan.

    Args:
        settings: those of the environment where left out.

    Raises:
        BadProviders: the providers file does not hold.
    """
    configured = settings or load_settings()
    providers = Providers.from_settings(configured)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _open_gateway(configured, providers) as gateway:
            app.state.gateway = gateway
            yield

    app = Starlette(routes=ROUTES, middleware=_middleware(configured), exception_handlers=HANDLERS, lifespan=lifespan)
    # A redirect would carry the client's own Host header, and no route ends in a slash.
    app.router.redirect_slashes = False
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_ACCEPTED,
        expose_headers=CORS_EXPOSED,
        # No cookies: a page of another origin brings a key or a ticket of its own.
        allow_credentials=False,
        max_age=CORS_MAX_AGE_S,
    )
    return [Middleware(Access), *([cors] if settings.cors_origins else [])]


@asynccontextmanager
async def _open_gateway(settings: Settings, providers: Providers) -> AsyncIterator[Gateway]:
    """Every part, opened in order and closed in the other.

    Raises:
        StorageUnfit, AccessUnset: Redis cannot carry runs, or settings are missing; the message says what to do.
    """
    redis = redis_connections.connect(settings)
    try:
        await check_server(redis)
        hub = Hub(redis, settings)
        line = Line(redis, settings.redis_timeout_s)
        limiter = TenantLimiter(line, settings.tenant_limits)
        await hub.start()
        await limiter.start()
        presence = Presence(redis, keys.GATEWAYS, uuid4().hex, lambda: {"streams_open": hub.open_streams})
        saying = asyncio.create_task(presence.say_forever())
        metrics = Metrics(hub, settings.lease_s)
        metrics.loop_lag.start()
        try:
            async with open_auth(settings, redis) as auth, drain_with_server(hub):
                yield Gateway(settings, redis, hub, metrics, auth, limiter, providers)
        finally:
            metrics.loop_lag.stop()
            await cancel_and_wait(saying)
            await limiter.stop()
            await hub.stop()
            await line.aclose()
    finally:
        await redis_connections.close(redis)


def __getattr__(name: str) -> Starlette:
    """`app`, made when a server asks for it, so that an import alone reads no settings."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
