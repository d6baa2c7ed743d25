"""Follows a run across connections: requests, what their answers mean, and how long to wait; no I/O."""

import random
import time
from collections.abc import Callable, Iterator
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import httpx
import orjson
from httpx_sse import ServerSentEvent

from stagebus.client.api_requests import (
    CONNECT_MAX_S,
    RETRYABLE_STATUSES,
    Json,
    is_json,
    parse_answer,
    parse_refusal,
)
from stagebus.client.client_errors import Unreachable
from stagebus.client.connection_state import ConnectionState
from stagebus.client.event_sequencer import GAP, STATUS, SequenceGap

# A connection without any data for this many ping intervals counts as lost. The JavaScript client uses the same number.
SILENT_PINGS: Final = 1.6
PING_S: Final = 4.0  # the gateway's default, until it says otherwise
# A gateway begins every stream immediately. If nothing has arrived by then, a proxy may hold the stream back.
FIRST_BYTES_S: Final = 2.5
# A page in less time shows that the gateway is near and the stream is held back; after a slower one it is tried again.
PAGE_QUICK_S: Final = 1.0
# Pages: the most events of one, how long the gateway waits for an event, and the pauses between two requests.
PAGE_EVENTS: Final = 500
PAGE_WAIT_S: Final = 15
PAGE_ANSWER_MAX_S: Final = 5.0
PAGE_PAUSE_S: Final = 0.25
EMPTY_PAGE_PAUSE_S: Final = 2.0
# After this long a client that polls tries a stream again.
POLLING_MAX_S: Final = 300.0
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


Received = TypeVar("Received")


class Sequencer(Protocol[Received]):
    """Orders the events of a stream: `EventSequencer` those of a run, `ThreadSequencer` those of a thread.

    Attributes:
        has_pages: the gateway also has these events as JSON pages.
    """

    has_pages: ClassVar[bool]
    cursor: str
    is_ended: bool
    gap_retries: int

    def accept(self, frame: ServerSentEvent) -> list[Received]:
        """Return the new events of a frame."""


class StreamFollower(Generic[Received]):
    """Decides for one reader of one stream when to reconnect, and when to give up."""

    def __init__(
        self,
        url: str,
        path: str,
        sequencer: Sequencer[Received],
        on_lost: OnLost,
        patience_s: float | None,
        connection: ConnectionState | None = None,
        *,
        is_found: bool,
    ) -> None:
        """Args:
        path: of the stream, below the gateway's URL.
        connection: is kept up to date.
        is_found: the gateway has answered before, so it exists and is worth waiting for.
        """
        self.sequencer = sequencer
        self.connection = connection or ConnectionState()
        self.path = path
        self._url = url
        self._on_lost = on_lost
        self._retry_s = RETRY_S
        self.silence_s = PING_S * SILENT_PINGS  # how long a connection may be silent
        # A trial shows whether the network passes a stream on: only the first bytes are waited for.
        self._is_trial = True
        self._is_streaming = False  # the present request is for a stream
        self._has_frames = False  # it has brought frames
        self._is_probing = (
            False  # after a trial the next request is for a page, which shows what the stream should have brought
        )
        self._polls_until = 0.0
        self._asked_at = 0.0
        self._is_behind = True  # the log has more events than the last page
        self._page_pause_s: float | None = None  # None: the last request brought no page
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
    def polls(self) -> bool:
        """True if the next request is for a page instead of a stream."""
        return self._is_probing or time.monotonic() < self._polls_until

    def begin_stream(self) -> httpx.Timeout:
        """Prepare for the next connection and return its time limits."""
        self._is_streaming, self._has_frames = True, False
        self.connection.set_transport("stream")
        silence_s = min(self.silence_s, FIRST_BYTES_S) if self._is_trial else self.silence_s
        return httpx.Timeout(silence_s, connect=CONNECT_MAX_S)

    def begin_page(self) -> Json:
        """Prepare for the next request of a page and return its arguments for httpx."""
        self._is_streaming, self._page_pause_s = False, None
        self._asked_at = time.monotonic()
        wait_s = 0 if self._is_probing or self._is_behind else PAGE_WAIT_S
        return {
            "params": {"limit": PAGE_EVENTS, "wait": wait_s},
            "headers": {"Accept": "application/json", **self.headers},
            "timeout": httpx.Timeout(wait_s + PAGE_ANSWER_MAX_S, connect=CONNECT_MAX_S),
        }

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

    def accept(self, frame: ServerSentEvent) -> list[Received]:
        """Return the new events of a frame, as its sequencer does.

        Raises:
            SequenceGap: an event is missing; reconnect from the cursor.
            StreamBroken: the frame is not an event of a run, even after retries.
        """
        self._has_frames = True
        if frame.retry is not None:
            self._retry_s = frame.retry / 1000
        events = self.sequencer.accept(frame)
        if frame.event == STATUS:
            self.connection.set_waiting_for(_waiting_for(frame.data))
        if events:
            self.connection.set_waiting_for(None)
            self._extend_patience()
            self._failures = 0
        return events

    def accept_page(self, response: httpx.Response) -> Iterator[Received]:
        """Yield the new events of a page of the log.

        Raises:
            Refused: the gateway refused, and another request would not help.
            SequenceGap, StreamBroken: as for `accept`.
            httpx.RemoteProtocolError: the response is not a page.
        """
        is_probe, self._is_probing = self._is_probing, False
        if response.status_code in RETRYABLE_STATUSES:
            if not is_probe and is_json(response) and parse_refusal(response).code == "storage_unavailable":
                # Redis does not answer to the gateway. That is no loss of the connection.
                self._extend_patience()
                self.connection.set_waiting_for("storage")
                self._page_pause_s = EMPTY_PAGE_PAUSE_S
            return
        if response.is_error and is_json(response):
            raise parse_refusal(response)
        page = parse_answer(response)
        answered_s = time.monotonic() - self._asked_at
        if is_probe and self._has_frames:
            self._is_trial = bool(page.get("events"))  # the stream had begun; was it quiet, or is its rest held back?
        elif is_probe and answered_s < PAGE_QUICK_S:
            self._polls_until = time.monotonic() + POLLING_MAX_S
            self._is_trial = True
            self.connection.set_transport("polling")
        self._extend_patience()
        self._is_behind = bool(page.get("has_more"))
        is_idle = not page.get("events") and answered_s < EMPTY_PAGE_PAUSE_S
        is_first = is_probe or self._is_behind
        self._page_pause_s = 0.0 if is_first else EMPTY_PAGE_PAUSE_S if is_idle else PAGE_PAUSE_S
        for frame in _frames_of(page):
            yield from self.accept(frame)
        self.connection.set_waiting_for(page.get("waiting_for"))
        self.sequencer.is_ended |= bool(page.get("is_ended"))

    def next_wait_s(self, failure: Exception | None) -> float:
        """Return the seconds to wait before the next connection; they grow until an event arrives.

        Raises:
            Unreachable: no gateway has answered for too long.
        """
        if self._page_pause_s is not None and failure is None:
            pause_s, self._page_pause_s = self._page_pause_s, None
            return pause_s
        if self._is_streaming and isinstance(failure, httpx.ReadTimeout):
            was_trial, self._is_trial = self._is_trial, not self._is_trial
            if was_trial:
                self._is_probing = self.sequencer.has_pages
                self._opened_at = None
                return 0.0
        self._is_probing = False
        self.connection.set_waiting_for(None)
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


def _frames_of(page: Json) -> Iterator[ServerSentEvent]:
    """Yield a page's gap and events as the frames that a stream would have."""
    if page.get("gap"):
        yield ServerSentEvent(event=GAP, data=orjson.dumps(page["gap"]).decode())
    for event in page.get("events", ()):
        yield ServerSentEvent(event=event["event"], data=orjson.dumps(event["data"]).decode(), id=event["id"])


def _waiting_for(data: str) -> str | None:
    try:
        waiting_for = orjson.loads(data)["waiting_for"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(waiting_for) if waiting_for is not None else None


def _is_stream(response: httpx.Response) -> bool:
    return not response.is_error and response.headers.get("content-type", "").startswith("text/event-stream")


def jitter() -> float:
    """Return a random factor from 0.5 to 1, so that clients that lost the same gateway do not all return together."""
    return 0.5 + random.random() / 2  # noqa: S311 - not a secret
