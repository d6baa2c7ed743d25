"""How a client receives a run's events now, and what the run waits for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Transport = Literal["stream", "polling"]
OnConnection = Callable[["ConnectionState"], None]


@dataclass
class ConnectionState:
    """The state of one reader's connection to the gateway.

    Attributes:
        transport: `polling` if a proxy holds streams back, so that the events are read as pages.
        waiting_for: what a silent run waits for: `worker`, `storage` or None.
        on_change: called after each change of the other two.
    """

    transport: Transport = "stream"
    waiting_for: str | None = None
    on_change: OnConnection = lambda _state: None

    def set_transport(self, transport: Transport) -> None:
        """Set `transport`."""
        if transport != self.transport:
            self.transport = transport
            self.on_change(self)

    def set_waiting_for(self, waiting_for: str | None) -> None:
        """Set `waiting_for`."""
        if waiting_for != self.waiting_for:
            self.waiting_for = waiting_for
            self.on_change(self)
