"""A host application with the gateway mounted below /ai, served by plain uvicorn: `python -m tests.support.mounted_gateway`."""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from stagebus.gateway.app import create_app

PREFIX: Final = "/ai"


def create_host() -> Starlette:
    """Returns the host application. It enters the gateway's lifespan, which a mounted app's is not by itself."""
    gateway = create_app()

    @asynccontextmanager
    async def lifespan(_host: Starlette) -> AsyncIterator[None]:
        async with gateway.router.lifespan_context(gateway):
            yield

    async def host_page(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("the host's own page")

    return Starlette(routes=[Mount(PREFIX, gateway), Route("/", host_page)], lifespan=lifespan)


def main() -> None:
    """Serves the host on a free port, which the output names."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_host(), log_level="warning"))
        sys.stdout.write(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\n")
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
