"""Several gateway processes on one port, kept running by a parent that serves nothing itself.

    parent        holds the port without listening, starts the others, starts again who dies
    gateway, n     each listens on the port; the kernel spreads new connections over those who do

They share nothing but the port: each has its own hub, its own connections to Redis, its own
drain. A signal to the parent drains all of them at the same time.
Source: socket(7), SO_REUSEPORT
"""

import asyncio
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ChildFailed
from stagebus.shared.local.process import ChildSpec
from stagebus.shared.local.supervisor import DRAIN_MARGIN_S, LISTENING, Supervisor, on_signals


async def serve_many(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; a second signal ends all at once.

    Raises:
        ChildFailed: the port is taken, or one of them did not start; nothing is left running.
    """
    told = asyncio.Event()
    supervisor = Supervisor(_show)
    with ExitStack() as stack:
        # Held for as long as we live: no port of the system's choice goes to another while a child is replaced.
        held = [stack.enter_context(part) for part in bind_shared(host, port)]
        on_signals(told, supervisor.kill)
        spec = _spec(settings, host, held[0].getsockname()[1])
        starting = asyncio.gather(*(supervisor.start(replace(spec, name=f"gateway {n + 1}")) for n in range(workers)))
        waiting = asyncio.create_task(told.wait())
        try:
            await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                sys.stdout.write(f"listening on {starting.result()[0]}\n")
                sys.stdout.flush()
                await waiting
        finally:
            starting.cancel()
            waiting.cancel()
            await asyncio.gather(starting, waiting, return_exceptions=True)
            await supervisor.stop()


def bind_shared(host: str, port: int) -> list[socket.socket]:
    """Sockets of the host's addresses that others of this user may bind, too; port 0 takes a free one.

    Raises:
        ChildFailed: a port is taken by somebody who does not share it.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            part = socket.socket(family, kind, protocol)
            sockets.append(part)
            part.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            part.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                part.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            part.bind((where[0], sockets[0].getsockname()[1] or port, *where[2:]))
    except OSError as exc:
        for part in sockets:
            part.close()
        raise ChildFailed(f"cannot listen on {host}, port {port}: {exc.strerror or exc}") from exc
    return sockets


def _show(name: str, line: str) -> None:
    """Lines of the log as they are; what else is said, of whom it is."""
    with suppress(
        OSError
    ):  # nobody reads any more: else none of them would be started again, and each stop at its next line
        sys.stderr.write(f"{line}\n" if line.startswith("{") else f"{name}: {line}\n")
        sys.stderr.flush()


def _spec(settings: Settings, host: str, port: int) -> ChildSpec:
    insecure = ["--insecure"] if settings.insecure else []
    argv = (sys.executable, "-m", "stagebus.gateway", "--shares-port", "--host", host, *insecure, "--port", str(port))
    stop_max_s = settings.drain_delay_s + settings.drain_spread_s + DRAIN_MARGIN_S
    return ChildSpec("gateway", argv, LISTENING, drains=True, stop_max_s=stop_max_s)
