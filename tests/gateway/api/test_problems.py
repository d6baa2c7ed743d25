import inspect
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from stagebus.gateway.api.problems import HANDLERS, answer_internal, problem_types
from stagebus.gateway.api.urls import Urls
from stagebus.shared import access_errors, errors
from stagebus.shared.errors import InvalidRequest, StagebusError

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
        for module in (errors, access_errors)
        for _, error in inspect.getmembers(module, inspect.isclass)
        if issubclass(error, StagebusError) and error.__module__ == module.__name__ and error is not StagebusError
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
async def test_every_error_answers_by_what_it_carries(failing: httpx.AsyncClient, error: type[StagebusError]) -> None:
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
async def test_redis_errors_become_ours_without_their_text(
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


async def test_client_that_went_away_is_no_error_of_ours(failing: httpx.AsyncClient) -> None:
    RAISED.append(ClientDisconnect())

    assert (await failing.get("/fail")).status_code == 499


async def test_unknown_path_and_method_have_no_type_of_their_own(failing: httpx.AsyncClient) -> None:
    missing, wrong = await failing.get("/none"), await failing.post("/fail")

    assert (missing.json()["type"], missing.json()["code"]) == ("about:blank", "not_found")
    assert (wrong.json()["type"], wrong.json()["code"]) == ("about:blank", "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


def test_internal_error_says_nothing_of_the_inside() -> None:
    response = answer_internal(Request({"type": "http"}))

    assert response.status_code == 500
    assert json.loads(response.body)["code"] == "internal"


def test_every_code_has_one_type() -> None:
    codes = [problem_type.code for problem_type in problem_types(Urls())]

    assert len(codes) == len(set(codes))
    assert {error.code for error in every_error()} <= set(codes)
    assert all(problem_type.description for problem_type in problem_types(Urls()))
