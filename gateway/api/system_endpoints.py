"""What is no run: health, metrics, the catalogue, descriptions of the API, and the page."""

from pathlib import Path
from typing import Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from stagebus.gateway.api import openapi
from stagebus.gateway.api.guard import needs, public
from stagebus.gateway.api.method_router import guards
from stagebus.gateway.api.problems import problem_types
from stagebus.gateway.api.responses import JSON, answer
from stagebus.gateway.api.schemas.answers import Health, ModelList, ToolList
from stagebus.gateway.api.schemas.stats_answer import Stats
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain import events
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.observability import collectors
from stagebus.shared.store import system_stats, tool_catalog

STATIC: Final = StaticFiles(directory=Path(__file__).parents[1] / "static")
NOT_FOUND: Final = 404

# The page needs its own files and its own API, and nothing from anywhere else. It shows what
# models and tools wrote, so nothing that is no file of ours may run.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for again each time, and answered with 304 where it is the same: an upgrade shows at once.
    "Cache-Control": "no-cache",
}


@public
async def get_health(_request: Request) -> Response:
    """GET /healthz: the process answers."""
    return answer(Health())


@public
async def get_ready(request: Request) -> Response:
    """GET /readyz: new clients may be sent here.

    Errors: draining and storage_unavailable 503.
    """
    await gateway_of(request).check_ready()
    return answer(Health())


@needs(Scope.ADMIN, unless=lambda settings: settings.metrics_open)
async def get_metrics(request: Request) -> Response:
    """GET /metrics: Prometheus's text format."""
    gateway = gateway_of(request)
    return Response(await gateway.metrics.render(gateway.redis), headers={"Content-Type": collectors.CONTENT_TYPE})


@needs(Scope.ADMIN)
async def get_stats(request: Request) -> Response:
    """GET /stats: the queue, the workers and what they hold, the streams, and what all runs came to."""
    gateway = gateway_of(request)
    return answer(Stats.of(await system_stats.read_stats(gateway.redis, gateway.settings.lease_s)))


@needs(None)
async def list_tools(request: Request) -> Response:
    """GET /tools: what the workers have published."""
    return answer(ToolList(tools=await tool_catalog.read_tools(gateway_of(request).redis)))


@needs(None)
async def list_models(request: Request) -> Response:
    """GET /models: the operator's."""
    providers = gateway_of(request).providers
    return answer(ModelList.of(providers, providers.default_model))


@public
async def get_event_schema(_request: Request) -> Response:
    """GET /schema/events.json: the events' payloads as JSON Schema."""
    return Response(orjson.dumps(events.json_schema()), media_type="application/schema+json")


@public
async def get_openapi(request: Request) -> Response:
    """GET /openapi.json: this API."""
    is_open = gateway_of(request).settings.auth == "open"
    return Response(orjson.dumps(openapi.document(guards(request.app.routes), is_open=is_open)), media_type=JSON)


@public
async def get_problem_type(request: Request) -> Response:
    """GET /problems/{code}: what the `type` of a problem means."""
    code = request.path_params["code"]
    for problem_type in problem_types():
        if problem_type.code == code:
            return answer(problem_type)
    raise HTTPException(NOT_FOUND)


@public
async def get_page(request: Request) -> Response:
    """GET /: the page."""
    return await _static_file(request, "index.html")


@public
async def get_static(request: Request) -> Response:
    """GET /static/{path}: the page's files."""
    return await _static_file(request, request.path_params["path"])


async def _static_file(request: Request, path: str) -> Response:
    response = await STATIC.get_response(path, request.scope)
    response.headers.update(PAGE_HEADERS)
    return response
