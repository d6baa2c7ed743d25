"""Clients that take nothing are disconnected; slow ones are not."""

from stagebus.gateway.server.connection import Connection
from stagebus.gateway.server.stalled_clients import StalledClients


class Transport:
    """A transport with a backlog."""

    def __init__(self) -> None:
        self.size = 100
        self.is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.size

    def abort(self) -> None:
        self.is_aborted = True


class Waiting(Connection):
    """A connection without a client."""

    is_waiting_for_client = True

    def __init__(self) -> None:
        self.transport = Transport()


def test_client_that_takes_nothing_is_disconnected_after_the_time_limit() -> None:
    clients, connection = StalledClients(10), Waiting()
    clients.abort([connection], 0)
    clients.abort([connection], 9)
    assert not connection.transport.is_aborted
    clients.abort([connection], 10)

    assert connection.transport.is_aborted


def test_client_that_takes_something_gets_the_time_limit_again() -> None:
    clients, connection = StalledClients(10), Waiting()
    for now in range(0, 50, 5):
        connection.transport.size -= 1
        clients.abort([connection], now)
    assert not connection.transport.is_aborted
    for now in (50, 54):
        clients.abort([connection], now)
    assert not connection.transport.is_aborted
    clients.abort([connection], 55)

    assert connection.transport.is_aborted


def test_connection_that_waits_for_no_client_is_kept() -> None:
    clients, connection = StalledClients(10), Waiting()
    clients.abort([connection], 0)
    connection.is_waiting_for_client = False
    clients.abort([connection], 5)
    connection.is_waiting_for_client = True
    clients.abort([connection], 12)
    clients.abort([connection], 21)

    assert not connection.transport.is_aborted
