"""Descriptions of the API: the OpenAPI document, the events' JSON Schema, the problem types."""

from typing import Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api import openapi
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import public
from stagebus.gateway.api.method_router import NOT_FOUND, endpoints_of
from stagebus.gateway.api.params import PROBLEM_CODE
from stagebus.gateway.api.problems import problem_types
from stagebus.gateway.api.responses import JSON, json_response
from stagebus.gateway.api.schemas.answers import ProblemType
from stagebus.gateway.api.urls import OPENAPI_PATH, urls_of
from stagebus.gateway.context import gateway_of
from stagebus.shared.domain import event_schema

JSON_SCHEMA: Final = "application/schema+json"


async def get_event_schema(_request: Request) -> Response:
    """Get the JSON Schema of the events' payloads."""
    return Response(orjson.dumps(event_schema.json_schema()), media_type=JSON_SCHEMA)


async def get_openapi(request: Request) -> Response:
    """Get this OpenAPI document."""
    document = openapi.build_document(
        endpoints_of(request.app.routes),
        is_open=gateway_of(request).settings.auth == "open",
        root_path=urls_of(request).root_path,
    )
    return Response(orjson.dumps(document), media_type=JSON)


async def get_problem_type(request: Request) -> Response:
    """Get the explanation of a problem's `type`."""
    code = request.path_params["code"]
    for problem_type in problem_types(urls_of(request)):
        if problem_type.code == code:
            return json_response(problem_type)
    raise HTTPException(NOT_FOUND)


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/schema/events.json", get_event_schema, public,
        {200: ResponseSpec("A JSON Schema.", {JSON_SCHEMA: {"type": "object"}})},
    ),
    Endpoint(
        "GET", OPENAPI_PATH, get_openapi, public,
        {200: ResponseSpec("An OpenAPI 3.1 document.", {JSON: {"type": "object"}})},
    ),
    Endpoint(
        "GET", "/problems/{code}", get_problem_type, public,
        {200: ResponseSpec.json("The problem type.", ProblemType)},
        [PROBLEM_CODE],
    ),
)  # fmt: skip
