"""How a run is followed through every disconnect: what to ask, what an answer means, how long to wait; no I/O."""

import random
import time
from collections.abc import Callable
from typing import Final

import httpx
from httpx_sse import ServerSentEvent

from stagebus.client.api_requests import PASSING, is_json, refusal, run_path
from stagebus.client.client_errors import StreamBroken, Unreachable
from stagebus.client.event_sequencer import EventSequencer, Received, SequenceGap

# Of the gateway's pings, and of those of its default setting until it says otherwise.
SILENT_PINGS: Final = 3.5
PING_S: Final = 10.0
RETRY_S: Final = 1.0
BACKOFF_MAX_S: Final = 15.0
# How long to look for a gateway that was never there, and for one that was.
FIRST_CONTACT_MAX_S: Final = 5.0
PATIENCE_S: Final = 300.0
HOLES_MAX: Final = 3

_NO_CONTENT: Final = 204

# Hears of each lost stream: the cursor to go on from, and how soon that will be tried.
OnLost = Callable[[str, float], None]

# What ends a connection but not the following.
BREAKS: Final = (httpx.TransportError, httpx.StreamError, SequenceGap, ValueError)


class StreamFollower:
    """One reader's way through one run."""

    def __init__(
        self, url: str, run_id: str, place: EventSequencer, on_lost: OnLost, patience_s: float | None, *, is_found: bool
    ) -> None:
        """`is_found`: a gateway answered before, so that there is one to wait for."""
        self.place = place
        self.path = run_path(run_id) + "/events"
        self._url = url
        self._run_id = run_id
        self._on_lost = on_lost
        self._retry_s = RETRY_S
        self.silence_s = PING_S * SILENT_PINGS  # how long the next connection may bring nothing
        self._failures = 0
        self._holes = 0
        self._opened_at: float | None = None  # while a connection stands
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        is_first_contact = patience_s is None and not is_found
        self._give_up_at = time.monotonic() + (FIRST_CONTACT_MAX_S if is_first_contact else self._patience_s)

    @property
    def is_ended(self) -> bool:
        """Whether the run is over and all of it has come."""
        return self.place.is_ended

    @property
    def headers(self) -> dict[str, str]:
        """What the next request says of the place."""
        return {"Last-Event-ID": self.place.cursor} if self.place.cursor else {}

    def open(self, response: httpx.Response) -> bool:
        """Whether frames follow; the body of an error has been read.

        Raises:
            Refused: asking again would not help.
        """
        if response.status_code in PASSING:
            return False
        if response.is_error and is_json(response):
            raise refusal(response)
        if response.status_code != _NO_CONTENT and not _is_stream(response):
            return False  # a proxy's own page, or another server's
        self._reach()
        self._opened_at = time.monotonic()
        if (ping := response.headers.get("x-ping-s", "")).replace(".", "", 1).isdecimal():
            self.silence_s = max(float(ping) * SILENT_PINGS, 1.0)
        self.place.is_ended = response.status_code == _NO_CONTENT
        return not self.place.is_ended

    def take(self, frame: ServerSentEvent) -> Received | None:
        """The frame's event, if it brings a new one.

        Raises:
            Hole, ValueError: the connection is of no use.
        """
        if frame.retry is not None:
            self._retry_s = frame.retry / 1000
        received = self.place.take(frame)
        if received is not None:
            self._reach()
            self._failures = self._holes = 0
        return received

    def wait_s(self, failure: Exception | None) -> float:
        """How long to wait before the next connection; longer each time until an event comes.

        Raises:
            Unreachable: nobody has answered for too long.
            StreamBroken: what is sent has holes, each time.
        """
        if isinstance(failure, SequenceGap | ValueError):
            self._holes += 1
            if self._holes > HOLES_MAX:
                raise StreamBroken(f"run {self._run_id}: {failure}, each time that it is asked for") from failure
        if self._opened_at is not None:
            # It stood until now, quiet or not: a run may wait for a person for a day.
            self._reach()
            if time.monotonic() - self._opened_at > BACKOFF_MAX_S:
                self._failures = 0
            self._opened_at = None
        if time.monotonic() > self._give_up_at:
            raise Unreachable(self._url, failure) from failure
        wait_s = min(self._retry_s * 2.0**self._failures, BACKOFF_MAX_S) * jitter()
        self._failures += 1
        self._on_lost(self.place.cursor, wait_s)
        return wait_s

    def _reach(self) -> None:
        self._give_up_at = time.monotonic() + self._patience_s


def _is_stream(response: httpx.Response) -> bool:
    return not response.is_error and response.headers.get("content-type", "").startswith("text/event-stream")


def jitter() -> float:
    """From 0.5 to 1, so that those who lost the same gateway do not all come back at once."""
    return 0.5 + random.random() / 2  # noqa: S311 - no secret
