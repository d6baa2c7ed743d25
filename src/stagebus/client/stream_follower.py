"""Follows a run across connections: requests, what their answers mean, and how long to wait; no I/O."""

import random
import time
from collections.abc import Callable
from typing import Final

import httpx
from httpx_sse import ServerSentEvent

from stagebus.client.api_requests import RETRYABLE_STATUSES, is_json, parse_refusal, run_path
from stagebus.client.client_errors import Unreachable
from stagebus.client.event_sequencer import EventSequencer, RunEvent, SequenceGap

# A connection without any data for this many ping intervals counts as lost. The JavaScript client uses the same number.
SILENT_PINGS: Final = 2.5
PING_S: Final = 10.0  # the gateway's default, until it says otherwise
RETRY_S: Final = 1.0
BACKOFF_MAX_S: Final = 15.0
# How long to try to reach a gateway that has never answered, and one that has.
FIRST_CONTACT_MAX_S: Final = 5.0
PATIENCE_S: Final = 300.0

_NO_CONTENT: Final = 204

# Called for each lost stream with the cursor to continue from and the seconds until the next attempt.
OnLost = Callable[[str, float], None]

# Errors that end a connection; the follower reconnects.
CONNECTION_ERRORS: Final = (httpx.TransportError, httpx.StreamError, SequenceGap)


class StreamFollower:
    """Decides for one reader of one run when to reconnect, and when to give up."""

    def __init__(
        self,
        url: str,
        run_id: str,
        sequencer: EventSequencer,
        on_lost: OnLost,
        patience_s: float | None,
        *,
        is_found: bool,
    ) -> None:
        """`is_found`: the gateway has answered before, so it exists and is worth waiting for."""
        self.sequencer = sequencer
        self.path = run_path(run_id) + "/events"
        self._url = url
        self._on_lost = on_lost
        self._retry_s = RETRY_S
        self.silence_s = PING_S * SILENT_PINGS  # how long the next connection may be silent
        self._failures = 0
        self._opened_at: float | None = None  # None without a connection
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        is_first_contact = patience_s is None and not is_found
        self._give_up_at = time.monotonic() + (FIRST_CONTACT_MAX_S if is_first_contact else self._patience_s)

    @property
    def is_ended(self) -> bool:
        """True once the terminal event was received."""
        return self.sequencer.is_ended

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the next request: the cursor."""
        return {"Last-Event-ID": self.sequencer.cursor} if self.sequencer.cursor else {}

    def open(self, response: httpx.Response) -> bool:
        """Handle the head of a response; the body of an error must have been read.

        Returns:
            True if event frames follow.

        Raises:
            Refused: the gateway refused, and another request would not help.
        """
        if response.status_code in RETRYABLE_STATUSES:
            return False
        if response.is_error and is_json(response):
            raise parse_refusal(response)
        if response.status_code != _NO_CONTENT and not _is_stream(response):
            return False  # the page of a proxy or of another server
        self._extend_patience()
        self._opened_at = time.monotonic()
        if (ping := response.headers.get("x-ping-s", "")).replace(".", "", 1).isdecimal():
            self.silence_s = max(float(ping) * SILENT_PINGS, 1.0)
        self.sequencer.is_ended = response.status_code == _NO_CONTENT
        return not self.sequencer.is_ended

    def accept(self, frame: ServerSentEvent) -> list[RunEvent]:
        """Return the new events of a frame, as `EventSequencer.accept` does.

        Raises:
            SequenceGap: an event is missing; reconnect from the cursor.
            StreamBroken: the frame is not an event of a run, even after retries.
        """
        if frame.retry is not None:
            self._retry_s = frame.retry / 1000
        events = self.sequencer.accept(frame)
        if events:
            self._extend_patience()
            self._failures = 0
        return events

    def next_wait_s(self, failure: Exception | None) -> float:
        """Return the seconds to wait before the next connection; they grow until an event arrives.

        Raises:
            Unreachable: no gateway has answered for too long.
        """
        if self._opened_at is not None:
            # The connection was alive until now, even without events: a run may wait for a person for a day.
            self._extend_patience()
            if time.monotonic() - self._opened_at > BACKOFF_MAX_S:
                self._failures = 0
            self._opened_at = None
        if time.monotonic() > self._give_up_at:
            raise Unreachable(self._url, failure) from failure
        if isinstance(failure, SequenceGap) and self.sequencer.gap_retries == 1:
            self._on_lost(self.sequencer.cursor, 0.0)
            return 0.0  # a missing event is most likely a fault of this one connection
        wait_s = min(self._retry_s * 2.0**self._failures, BACKOFF_MAX_S) * jitter()
        self._failures += 1
        self._on_lost(self.sequencer.cursor, wait_s)
        return wait_s

    def _extend_patience(self) -> None:
        self._give_up_at = time.monotonic() + self._patience_s


def _is_stream(response: httpx.Response) -> bool:
    return not response.is_error and response.headers.get("content-type", "").startswith("text/event-stream")


def jitter() -> float:
    """Return a random factor from 0.5 to 1, so that clients that lost the same gateway do not all return together."""
    return 0.5 + random.random() / 2  # noqa: S311 - not a secret
