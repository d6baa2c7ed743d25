"""Resolves hosts with the resolver of the system, in threads of its own.

A name server that does not answer holds a thread for half a minute, whatever the caller's timeout is. In the event
loop's own few threads, a host with such a name server would keep every other host of the process waiting, those of the
models included. So lookups have threads of their own, and those of one host that come together share one.
"""

import asyncio
import socket
from concurrent.futures import Future
from typing import Any, Final

from stagebus.worker.tools.daemon_thread_pool import DaemonThreadPool

# More than the hosts that the files of an operator name: the sources of tools, the endpoints and origins of webhooks.
LOOKUPS_MAX: Final = 256

_Lookup = Future[list[tuple[Any, ...]]]


class HostResolver:
    """Resolves hosts for one process."""

    def __init__(self) -> None:
        self._threads = DaemonThreadPool(LOOKUPS_MAX)
        self._lookups: dict[tuple[str, int], _Lookup] = {}

    async def resolve(self, host: str, port: int) -> list[str]:
        """Returns the addresses of a host.

        Raises:
            OSError, UnicodeError: it has none.
        """
        lookup = self._lookups.get((host, port)) or self._begin(host, port)
        waiting = asyncio.wrap_future(lookup)
        waiting.add_done_callback(_note_failure)
        # Shielded: if one caller gives up, the others still get the answer.
        found = await asyncio.shield(waiting)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def _begin(self, host: str, port: int) -> _Lookup:
        lookup = self._threads.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        self._lookups[host, port] = lookup
        lookup.add_done_callback(lambda _: self._lookups.pop((host, port)))
        return lookup


def _note_failure(waiting: asyncio.Future[Any]) -> None:
    """Keeps asyncio from reporting the failure of a lookup whose caller has given up."""
    if not waiting.cancelled():
        waiting.exception()
