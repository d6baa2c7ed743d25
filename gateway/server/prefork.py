"""Several gateway processes on one port (`--workers N`), and a parent that restarts them.

    parent       binds the port without listening, starts the children, restarts one that dies
    gateway 1…N  each listens on the port; the kernel spreads new connections over them

The processes share only the port: each has its own hub, its own Redis connections and its own drain. A signal to
the parent drains all of them at the same time.

`uvicorn.supervisors.Multiprocess` (0.54) does not replace this: it creates stock `uvicorn.Server`s, so readiness would
not fail before a drain; it stops the whole service if a restarted child cannot start, for instance while Redis is
down, where this parent retries with a backoff; it ignores a second signal; and SIGHUP restarts the children.
Source: socket(7), SO_REUSEPORT
"""

import asyncio
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace

from stagebus.shared.config.settings import Settings
from stagebus.shared.local.process import ChildSpec
from stagebus.shared.local.process_errors import ChildFailed
from stagebus.shared.local.supervisor import DRAIN_MARGIN_S, LISTENING, Supervisor, on_signals
from stagebus.shared.observability.redaction import printable


async def serve_many(settings: Settings, host: str, port: int, workers: int) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP; a second signal kills the children.

    Raises:
        ChildFailed: the port is taken, or a child did not start; no child is left running.
    """
    stop = asyncio.Event()
    supervisor = Supervisor(_print_line)
    with ExitStack() as stack:
        # Kept open until the end: the system must not give a port that it chose to others while a child restarts.
        sockets = [stack.enter_context(part) for part in bind_shared(host, port)]
        on_signals(stop, supervisor.kill)
        spec = _child_spec(settings, host, sockets[0].getsockname()[1])
        starting = asyncio.gather(*(supervisor.start(replace(spec, name=f"gateway {n + 1}")) for n in range(workers)))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                sys.stdout.write(f"listening on {starting.result()[0]}\n")
                sys.stdout.flush()
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await supervisor.stop()


def bind_shared(host: str, port: int) -> list[socket.socket]:
    """Returns sockets bound to the host's addresses, which other processes of this user may bind, too.

    Args:
        port: 0 takes a free one, the same for all addresses.

    Raises:
        ChildFailed: another process has the port and does not share it.
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


def _print_line(name: str, line: str) -> None:
    """Prints log lines (JSON) as they are, and other output with the child's name."""
    # If the reader of stderr is gone, continue: otherwise no child would be restarted, and each would stop at its next line.
    with suppress(OSError):
        sys.stderr.write(printable(line if line.startswith("{") else f"{name}: {line}") + "\n")
        sys.stderr.flush()


def _child_spec(settings: Settings, host: str, port: int) -> ChildSpec:
    insecure = ["--insecure"] if settings.insecure else []
    argv = (sys.executable, "-m", "stagebus.gateway", "--shares-port", "--host", host, *insecure, "--port", str(port))
    stop_max_s = settings.drain_delay_s + settings.drain_spread_s + DRAIN_MARGIN_S
    return ChildSpec("gateway", argv, LISTENING, drains=True, stop_max_s=stop_max_s)
