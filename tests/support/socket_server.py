"""The gateway's app behind our own server on a socket of this process, for clients that need one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from stagebus.gateway.server.connection import connection_class
from stagebus.shared.config.settings import Settings
from tests.support.waiting import until_equal


@asynccontextmanager
async def serving(app: Starlette, settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """Serves the app, whose lifespan has begun; returns the address."""
    config = uvicorn.Config(app, http=connection_class(settings), ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until_equal(lambda: len(state.tasks), 0)
