import re
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from stagebus.gateway.api.openapi import build_document
from stagebus.gateway.endpoint_table import ENDPOINTS


def document(*, is_open: bool = True) -> dict[str, Any]:
    return build_document(ENDPOINTS, is_open=is_open)


def test_document_is_valid() -> None:
    errors = list(OpenAPIV31SpecValidator(document()).iter_errors())

    assert not errors


def test_operation_ids_are_unique() -> None:
    names = [endpoint.name for endpoint in ENDPOINTS]

    assert len(set(names)) == len(names)


def test_path_parameters_are_described() -> None:
    for endpoint in ENDPOINTS:
        if endpoint.is_documented:
            named = {parameter.name for parameter in endpoint.parameters if parameter.location == "path"}
            assert named == set(re.findall(r"{(\w+)}", endpoint.path_template))


def test_every_operation_has_a_summary() -> None:
    """It is the first sentence of the handler's docstring, and fits one line."""
    for path in document()["paths"].values():
        for operation in path.values():
            assert re.fullmatch(r"[A-Z][^\n]+\.", operation["summary"])


def test_every_operation_has_a_declared_tag_and_every_tag_an_operation() -> None:
    declared = {tag["name"] for tag in document()["tags"]}
    tags = {(path, tuple(entry["tags"])) for path, item in document()["paths"].items() for entry in item.values()}

    assert {name for _, names in tags for name in names} == declared
    assert {("/runs", ("Runs",)), ("/runs/{run_id}/events", ("Events",)), ("/metrics", ("System",))} <= tags
    assert {names for path, names in tags if path.startswith(("/v1/", "/api/", "/agui"))} == {("Views",)}


async def test_openapi_document_is_served(api: httpx.AsyncClient) -> None:
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
def test_create_run_schema_accepts_what_the_gateway_accepts(body: dict[str, Any], is_valid: bool) -> None:
    assert jsonschema.Draft202012Validator(schema("CreateRun")).is_valid(body) is is_valid


async def test_responses_match_their_schemas(api: httpx.AsyncClient) -> None:
    created = await api.post("/runs", json={"user_prompt": "Hello", "metadata": {"a": "b"}})
    responses = {
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

    for name, response in responses.items():
        jsonschema.validate(response.json(), schema(name), cls=jsonschema.Draft202012Validator)
