"""The page, the API reference and their static files."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import public

STATIC: Final = StaticFiles(directory=Path(__file__).parents[1] / "static")

# The page loads its own files and calls its own API, and nothing else. It shows text from models and tools, so
# only scripts from its own files may run.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    # Browsers revalidate each time and get 304 if nothing changed, so an upgrade is visible immediately.
    "Cache-Control": "no-cache",
}


async def get_page(request: Request) -> Response:
    """Get the web page."""
    return await _static_file(request, "index.html")


async def get_docs(request: Request) -> Response:
    """Get the API reference as a web page."""
    return await _static_file(request, "docs.html")


async def get_static(request: Request) -> Response:
    """Get a file of the page or of the API reference."""
    return await _static_file(request, request.path_params["path"])


async def _static_file(request: Request, path: str) -> Response:
    response = await STATIC.get_response(path, request.scope)
    response.headers.update(PAGE_HEADERS)
    return response


_HTML: Final = {"text/html": {"type": "string"}}

ENDPOINTS: Final = (
    Endpoint("GET", "/", get_page, public, {200: ResponseSpec("The page.", _HTML)}, is_compressed=True),
    Endpoint("GET", "/docs", get_docs, public, {200: ResponseSpec("The API reference.", _HTML)}, is_compressed=True),
    Endpoint("GET", "/static/{path:path}", get_static, public, is_compressed=True, is_documented=False),
)
