from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from stagebus.gateway.api import routes
from stagebus.gateway.api.method_router import MethodRouter, guards
from stagebus.gateway.api.openapi import document as make_document
from stagebus.gateway.api.operations import OPERATIONS
from stagebus.gateway.app import ROUTES


def document(*, is_open: bool = True) -> dict[str, Any]:
    return make_document(guards(ROUTES), is_open=is_open)


def test_document_is_valid() -> None:
    errors = list(OpenAPIV31SpecValidator(document()).iter_errors())

    assert not errors


def test_every_route_is_described_by_its_handlers_name() -> None:
    """Except for the page's own files, which are no API."""
    served = {
        (route.path_format, method.lower())
        for route in ROUTES
        if isinstance(route, Route) and isinstance(route.endpoint, MethodRouter) and route.path != routes.STATIC
        for method in route.endpoint.methods
        if method not in ("HEAD", "OPTIONS")
    }

    assert {(operation.path, operation.method) for operation in OPERATIONS} == served
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_path_parameters_are_described() -> None:
    for operation in OPERATIONS:
        named = {parameter.name for parameter in operation.parameters if parameter.where == "path"}
        assert named == {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}


async def test_it_is_served(api: httpx.AsyncClient) -> None:
    response = await api.get("/openapi.json")

    assert response.headers["content-type"] == "application/json"
    assert response.json() == document()


def schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({"user_prompt": "x"}, True),
        ({"user_prompt": "x", "messages": None, "max_tokens": [1, None], "tool_choice": "a"}, True),
        ({"messages": [{"role": "user", "content": "x"}]}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "user_prompt": None}, True),
        ({}, False),
        ({"user_prompt": "x", "messages": [{"role": "user", "content": "x"}]}, False),
        ({"user_prompt": "x", "colour": "red"}, False),
        ({"user_prompt": "x", "max_tokens": [1]}, False),
        ({"user_prompt": "x", "temperature": 3}, False),
    ],
)
def test_schema_takes_what_the_gateway_takes(body: dict[str, Any], is_valid: bool) -> None:
    assert jsonschema.Draft202012Validator(schema("CreateRun")).is_valid(body) is is_valid


async def test_answers_are_as_described(api: httpx.AsyncClient) -> None:
    created = await api.post("/runs", json={"user_prompt": "Hello", "metadata": {"a": "b"}})
    answers = {
        "RunAccepted": created,
        "RunView": await api.get(created.headers["location"]),
        "RunList": await api.get("/runs"),
        "EventPage": await api.get(created.json()["links"]["events"], headers={"Accept": "application/json"}),
        "ToolList": await api.get("/tools"),
        "ModelList": await api.get("/models"),
        "Health": await api.get("/healthz"),
        "Problem": await api.get("/runs/x"),
        "ProblemType": await api.get("/problems/run_not_found"),
    }

    for name, response in answers.items():
        jsonschema.validate(response.json(), schema(name), cls=jsonschema.Draft202012Validator)
