"""The one way in which a producer and the lease keeper report to the attempt that they work for."""

from typing import Protocol

from stagebus.shared.errors import StagebusError
from stagebus.shared.storage.queue_scripts import Renewal


class AttemptListener(Protocol):
    """Receives reports about one attempt, in the worker's main event loop."""

    def on_cancel(self) -> None:
        """A client asked for a cancel. May be called more than once."""

    def on_failure(self, failure: StagebusError) -> None:
        """The producer can append nothing more: the attempt is fenced, the run ended, or the log's tail is lost."""

    def on_renewed(self, renewal: Renewal, asked_at: float) -> None:
        """The lease was renewed; `asked_at` is the monotonic time at which the renewal was sent."""

    def on_lease_lost(self) -> None:
        """The lease cannot be renewed: another attempt owns the run, or the run has ended."""
