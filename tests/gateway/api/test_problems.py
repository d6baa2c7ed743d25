import inspect
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stagebus.gateway.api.endpoint import Endpoint, ErrorFormat
from stagebus.gateway.api.guard import public
from stagebus.gateway.api.method_router import build_routes
from stagebus.gateway.api.openapi import build_document
from stagebus.gateway.api.problems import HANDLERS, answer_internal, problem_types
from stagebus.gateway.api.urls import Urls
from stagebus.shared import access_errors, errors, position_errors, thread_errors, webhook_errors
from stagebus.shared.errors import InvalidRequest, RunNotFound, StagebusError

RAISED: list[Exception] = []


async def fail(_request: Request) -> Response:
    raise RAISED[-1]


@pytest.fixture
async def failing() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[Route("/fail", fail)], exception_handlers=HANDLERS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


def every_error() -> list[type[StagebusError]]:
    return [
        error
        for module in (errors, access_errors, position_errors, thread_errors, webhook_errors)
        for _, error in inspect.getmembers(module, inspect.isclass)
        if issubclass(error, StagebusError) and error.__module__ == module.__name__ and error is not StagebusError
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
async def test_every_error_is_rendered_as_a_problem(failing: httpx.AsyncClient, error: type[StagebusError]) -> None:
    raised = error.__new__(error, "the detail")
    if error is InvalidRequest:
        raised.__init__("the detail", [{"field": "model", "message": "wrong"}])
    RAISED.append(raised)

    response = await failing.get("/fail")

    assert response.status_code == error.status_hint
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status_hint,
        "detail": "the detail",
        "code": error.code,
        "errors": [{"field": "model", "message": "wrong"}] if error is InvalidRequest else [],
    }
    assert ("retry-after" in response.headers) == (error.status_hint in (429, 503))


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RedisConnectionError("10.0.0.7:6379 refused"), "storage_unavailable"),
        (OutOfMemoryError("OOM"), "storage_full"),
    ],
)
async def test_redis_errors_are_translated_without_their_text(
    failing: httpx.AsyncClient, raised: Exception, code: str
) -> None:
    RAISED.append(raised)

    response = await failing.get("/fail")

    assert (response.status_code, response.json()["code"]) == (503, code)
    assert "10.0.0.7" not in response.text
    assert int(response.headers["retry-after"]) > 0


async def test_retry_after_of_a_limit_is_rounded_up(failing: httpx.AsyncClient) -> None:
    RAISED.append(access_errors.TokensUsedUp(100, retry_after_s=1234.2))

    assert (await failing.get("/fail")).headers["retry-after"] == "1235"


async def test_client_disconnect_is_not_a_server_error(failing: httpx.AsyncClient) -> None:
    RAISED.append(ClientDisconnect())

    assert (await failing.get("/fail")).status_code == 499


async def test_plain_http_errors_have_the_type_about_blank(failing: httpx.AsyncClient) -> None:
    missing, wrong = await failing.get("/none"), await failing.post("/fail")

    assert (missing.json()["type"], missing.json()["code"]) == ("about:blank", "not_found")
    assert (wrong.json()["type"], wrong.json()["code"]) == ("about:blank", "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


class OwnError(BaseModel):
    message: str


def render_own(_request: Request, exc: StagebusError) -> Response:
    return Response(OwnError(message=f"{exc.code}: {exc}").model_dump_json(), exc.status_hint, media_type="text/own")


async def test_endpoint_can_declare_its_own_error_format() -> None:
    """In responses and in the OpenAPI document; other endpoints keep problem details."""
    own = ErrorFormat("text/own", OwnError, render_own)
    endpoints = (
        Endpoint("GET", "/own", fail, public, errors=[RunNotFound], error_format=own),
        Endpoint("GET", "/fail", fail, public, errors=[RunNotFound]),
    )
    app = Starlette(routes=build_routes(endpoints), exception_handlers=HANDLERS)
    RAISED.append(RunNotFound("01J"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        own_response, problem = await client.get("/own"), await client.get("/fail")
    document = build_document(endpoints, is_open=False)
    described = {path: methods["get"]["responses"]["404"]["content"] for path, methods in document["paths"].items()}

    assert (own_response.status_code, own_response.headers["content-type"]) == (404, "text/own; charset=utf-8")
    assert own_response.json()["message"].startswith("run_not_found: ")
    assert problem.json()["code"] == "run_not_found"
    assert described == {
        "/own": {"text/own": {"schema": {"$ref": "#/components/schemas/OwnError"}}},
        "/fail": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    assert {"OwnError", "Problem"} <= document["components"]["schemas"].keys()


def test_internal_error_hides_its_cause() -> None:
    response = answer_internal(Request({"type": "http"}))

    assert response.status_code == 500
    assert json.loads(response.body)["code"] == "internal"


def test_problem_types_list_every_code_once() -> None:
    codes = [problem_type.code for problem_type in problem_types(Urls())]

    assert len(codes) == len(set(codes))
    assert {error.code for error in every_error()} <= set(codes)
    assert all(problem_type.description for problem_type in problem_types(Urls()))
