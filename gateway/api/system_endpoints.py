"""The state of the system: health, readiness, metrics, statistics."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs, public
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import Health
from stagebus.gateway.api.schemas.stats_answer import Stats
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import Draining, StorageUnavailable
from stagebus.shared.observability import collectors
from stagebus.shared.store import system_stats


async def get_health(_request: Request) -> Response:
    """Liveness probe: check that this gateway process responds."""
    return json_response(Health())


async def get_ready(request: Request) -> Response:
    """Readiness probe: check that this gateway accepts new clients.

    It does not while it shuts down or while Redis does not respond.
    """
    await gateway_of(request).check_ready()
    return json_response(Health())


async def get_metrics(request: Request) -> Response:
    """Get metrics in the Prometheus text format."""
    gateway = gateway_of(request)
    return Response(await gateway.metrics.render(gateway.redis), headers={"Content-Type": collectors.CONTENT_TYPE})


async def get_stats(request: Request) -> Response:
    """Get the state of the queue, the workers and the open streams, and totals over all ended runs."""
    gateway = gateway_of(request)
    return json_response(Stats.of(await system_stats.read_stats(gateway.redis, gateway.settings.lease_s)))


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/healthz", get_health, public,
        {200: ResponseSpec.json("The process responds.", Health)},
        is_probe=True,
    ),
    Endpoint(
        "GET", "/readyz", get_ready, public,
        {200: ResponseSpec.json("Ready to accept clients.", Health)},
        errors=[Draining, StorageUnavailable], is_probe=True,
    ),
    Endpoint(
        "GET", "/metrics", get_metrics, needs(Scope.ADMIN, unless=lambda settings: settings.metrics_open),
        {200: ResponseSpec("The metrics.", {"text/plain": {"type": "string"}})},
        is_probe=True,
    ),
    Endpoint(
        "GET", "/stats", get_stats, needs(Scope.ADMIN),
        {200: ResponseSpec.json("The current statistics.", Stats)},
        errors=[StorageUnavailable],
    ),
)  # fmt: skip
