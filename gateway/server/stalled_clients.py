"""Aborts the connections of clients that take nothing of what was written to them.

An operating system keeps such a connection open for ever: the client's machine still answers, and uvicorn has no time
limit for writing. All connections of the process are checked together, so that a limit costs an open stream neither
memory nor a timer.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from stagebus.gateway.server.connection import Connection

logger = logging.getLogger(__name__)


class _Backlog(NamedTuple):
    """The bytes that a client has yet to take, and since when it takes nothing."""

    written_bytes: int
    since: float


class StalledClients:
    """Measures for how long each client takes nothing."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._backlog_by_connection: dict[Connection, _Backlog] = {}

    def abort(self, connections: Iterable[object], now: float) -> None:
        """Aborts the connections whose clients took nothing for `timeout_s`. To be called several times in that time.

        Nothing is written to a connection that waits for its client, so a backlog that does not shrink means that
        the client took nothing.
        """
        waiting: dict[Connection, _Backlog] = {}
        for connection in connections:
            if isinstance(connection, Connection) and connection.is_waiting_for_client:
                size = connection.transport.get_write_buffer_size()
                backlog = self._backlog_by_connection.get(connection)
                if backlog is None or backlog.written_bytes != size:
                    backlog = _Backlog(size, now)
                waiting[connection] = backlog
        self._backlog_by_connection = waiting
        stalled = [connection for connection, backlog in waiting.items() if now - backlog.since >= self._timeout_s]
        for connection in stalled:
            connection.transport.abort()
        if stalled:
            logger.info("aborted %d connections: their clients took nothing for %g s", len(stalled), self._timeout_s)
