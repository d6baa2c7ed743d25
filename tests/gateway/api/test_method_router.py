import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stagebus.gateway.api.guard import public
from stagebus.gateway.api.method_router import MethodRouter


@public
async def say_method(request: Request) -> Response:
    return Response(headers={"X-Method": request.method})


@pytest.fixture
def api() -> httpx.AsyncClient:
    app = Starlette(routes=[Route("/both", MethodRouter(GET=say_method, POST=say_method)),
                            Route("/post", MethodRouter(POST=say_method))])  # fmt: skip
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_methods_go_to_their_handlers(api: httpx.AsyncClient) -> None:
    for method in ("GET", "POST", "HEAD"):
        assert (await api.request(method, "/both")).headers["x-method"] == method


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "TRACE", "BREW"])
async def test_other_methods_hear_of_all_that_there_are(api: httpx.AsyncClient, method: str) -> None:
    response = await api.request(method, "/both")

    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_head_needs_a_get(api: httpx.AsyncClient) -> None:
    assert (await api.head("/post")).status_code == 405


async def test_options_names_the_methods(api: httpx.AsyncClient) -> None:
    response = await api.options("/post")

    assert (response.status_code, response.headers["allow"]) == (204, "OPTIONS, POST")
