"""The tools and models that a run may name."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.responses import json_response
from stagebus.gateway.api.schemas.answers import ToolList
from stagebus.gateway.api.schemas.model_list import ModelList
from stagebus.gateway.context import gateway_of
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.store import tool_catalog


async def list_tools(request: Request) -> Response:
    """List the tools that a run may use, as the workers have published them."""
    return json_response(ToolList(tools=await tool_catalog.read_tools(gateway_of(request).redis)))


async def list_models(request: Request) -> Response:
    """List the models that a run may use, as the operator has configured them."""
    providers = gateway_of(request).providers
    return json_response(ModelList.of(providers, providers.default_model))


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/tools", list_tools, needs(None),
        {200: ResponseSpec.json("The tools.", ToolList)},
        errors=[StorageUnavailable],
    ),
    Endpoint("GET", "/models", list_models, needs(None), {200: ResponseSpec.json("The models.", ModelList)}),
)  # fmt: skip
