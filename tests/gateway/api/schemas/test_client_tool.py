"""Tools that a request defines: how they are stored, and which definitions are refused."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.requests import ClientTool, RunRequest
from stagebus.shared.store import run_store, tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription

PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}}


def definition(name: str = "read_file", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Read.", "parameters": PARAMETERS}} | more


async def post(api: httpx.AsyncClient, redis: Redis, tools: list[Any], **more: Any) -> httpx.Response:
    await tool_catalog.publish_tools(redis, [ToolDescription(name="get_weather", description="", parameters={})])
    return await api.post("/runs", json={"user_prompt": "hi", "tools": tools, **more})


async def test_definition_stands_beside_names(api: httpx.AsyncClient, redis: Redis) -> None:
    tools = [definition(once=True, expires_in=60), "get_weather", {"type": "function", "function": {"name": "now"}}]
    response = await post(api, redis, tools, tool_choice="read_file")
    assert response.status_code == 202
    stored = RunRequest.model_validate((await run_store.get_run(redis, response.json()["id"])).request)

    assert stored.tools == ["read_file", "get_weather", "now"], "so a worker of an older version misses one and says so"
    assert stored.client_tools == [
        ClientTool(name="read_file", description="Read.", parameters=PARAMETERS, once=True, expires_in=60),
        ClientTool(name="now"),
    ]
    assert stored.registry_tools == ["get_weather"]


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        (definition("get_weather"), "tools.0"),
        (definition("no name"), "tools.0.function.name"),
        (definition(type="mcp"), "tools.0.type"),
        (definition(unknown=1), "tools.0.unknown"),
        (definition(expires_in=0), "tools.0.expires_in"),
        (definition(expires_in=8 * 86400), "tools.0.expires_in"),
        ({"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}, "tools.0.function.parameters"),
        ({"type": "function", "function": {"name": "f", "parameters": {"title": "x" * 2**16}}},
         "tools.0.function.parameters"),
        ("unknown", "tools.0"),
    ],
)  # fmt: skip
async def test_bad_definition_is_named(api: httpx.AsyncClient, redis: Redis, tool: Any, field: str) -> None:
    response = await post(api, redis, [tool])

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


async def test_name_is_defined_once(api: httpx.AsyncClient, redis: Redis) -> None:
    response = await post(api, redis, [definition(), definition()])

    assert [error["field"] for error in response.json()["errors"]] == ["tools.1"]


def test_request_without_definitions_is_stored_as_before() -> None:
    request = RunRequest(model="m", messages=[], timeout_s=1)

    assert "client_tools" not in request.model_dump(mode="json")


async def test_request_of_another_protocol_defines_tools_among_the_options_of_stagebus(
    api: httpx.AsyncClient, redis: Redis
) -> None:
    body = {"model": "demo", "input": "hi", "background": True, "stagebus": {"tools": [definition()]}}
    response = await api.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    (run,) = (await api.get("/runs")).json()["runs"]
    stored = RunRequest.model_validate((await run_store.get_run(redis, run["id"])).request)

    assert [tool.name for tool in stored.client_tools] == ["read_file"]
