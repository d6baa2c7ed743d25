import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint
from stagebus.gateway.api.guard import public
from stagebus.gateway.api.method_router import build_routes


async def say_method(request: Request) -> Response:
    return Response(headers={"X-Method": request.method})


@pytest.fixture
def api() -> httpx.AsyncClient:
    endpoints = [
        Endpoint(method, path, say_method, public)
        for method, path in (("GET", "/both"), ("POST", "/post"), ("POST", "/both"))
    ]
    app = Starlette(routes=build_routes(endpoints))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_methods_are_dispatched_to_their_handlers(api: httpx.AsyncClient) -> None:
    for method in ("GET", "POST", "HEAD"):
        assert (await api.request(method, "/both")).headers["x-method"] == method


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "TRACE", "BREW"])
async def test_405_lists_all_methods_of_the_path(api: httpx.AsyncClient, method: str) -> None:
    response = await api.request(method, "/both")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_head_needs_a_get(api: httpx.AsyncClient) -> None:
    assert (await api.head("/post")).status_code == 405


async def test_options_lists_the_methods(api: httpx.AsyncClient) -> None:
    response = await api.options("/post")

    assert (response.status_code, response.headers["allow"]) == (204, "OPTIONS, POST")
