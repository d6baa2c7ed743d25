"""The server process: where it listens, and how it shuts down.

    SIGTERM ─▶ not ready ─drain_delay_s─▶ stops listening, ends its streams ─drain_spread_s─▶ exits

It stops listening before its streams end, so that their clients reconnect to another gateway. A second signal skips
the rest.
"""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette

from stagebus.gateway.context import Gateway
from stagebus.gateway.server.connection import connection_class
from stagebus.gateway.server.stalled_clients import StalledClients
from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.gc_tuning import tune_for_streaming

# Longer than a proxy keeps an idle connection, so that a proxy never sends a request on a connection that closes.
KEEP_ALIVE_S: Final = 75
# How long a shutdown waits for other requests than streams.
SHUTDOWN_GRACE_S: Final = 5
POLL_S: Final = 0.1
# uvicorn's own interval.
TICK_S: Final = 0.1
# How often all connections are checked within `write_timeout_s`: 2 to 3 ms for 20,000 connections.
CHECKS_PER_TIMEOUT: Final = 8


class GatewayServer(uvicorn.Server):
    """uvicorn with a delay between the signal and the shutdown, in which readiness probes see the drain."""

    def __init__(self, app: Starlette, settings: Settings, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="uvloop",
                http=connection_class(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(settings.drain_spread_s + SHUTDOWN_GRACE_S),
            )
        )
        self._app = app
        self._drain_delay_s = settings.drain_delay_s
        self._stalled_clients = StalledClients(settings.write_timeout_s)
        self._check_ticks = max(1, int(settings.write_timeout_s / CHECKS_PER_TIMEOUT / TICK_S))
        self._is_shutting_down = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and prints the address: the system may have chosen the port."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        tune_for_streaming()
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        sys.stdout.write(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}\n")
        sys.stdout.flush()

    async def on_tick(self, counter: int) -> bool:
        """Aborts the connections of clients that do not read; uvicorn calls this every `TICK_S`."""
        if counter % self._check_ticks == 0:
            self._stalled_clients.abort(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Reports not ready from now on, and starts uvicorn's own shutdown after the delay."""
        gateway: Gateway | None = getattr(self._app.state, "gateway", None)
        if self._is_shutting_down or gateway is None or self._loop is None:
            self.force_exit = self._is_shutting_down
            super().handle_exit(sig, frame)
            return
        self._is_shutting_down = True
        gateway.hub.begin_drain()
        # A signal interrupts the event loop's own code, which may be changing its timers at this moment.
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain_delay_s, super().handle_exit, sig, frame)


@asynccontextmanager
async def drain_with_server(hub: Hub) -> AsyncIterator[None]:
    """Ends the hub's streams when the uvicorn server that runs this process begins to shut down.

    uvicorn waits for open responses before it ends the app's lifespan, and streams do not end by themselves. Under
    another server this does nothing, and `Hub.stop` ends the streams.
    """
    watching = asyncio.create_task(_drain_at_shutdown(hub))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _drain_at_shutdown(hub: Hub) -> None:
    server = _find_running_server()
    if server is not None:
        while not server.should_exit:  # noqa: ASYNC110 - uvicorn has a flag and no event
            await asyncio.sleep(POLL_S)
        await hub.drain()


def _find_running_server() -> uvicorn.Server | None:
    # uvicorn gives apps no reference to their server; its signal handler is a method of it (0.54).
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None
