"""The client for threads and scripts. Made from asynchronous.py by make_synchronous.py."""

import time
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
from httpx_sse import connect_sse

from stagebus.client import api_requests
from stagebus.client.api_requests import Call, Json, RunFields, RunFilters
from stagebus.client.client_errors import Unreachable
from stagebus.client.event_sequencer import EventSequencer, Received
from stagebus.client.results import Result, Ticket, result_of, ticket_of
from stagebus.client.run_state import RunState
from stagebus.client.stream_follower import BREAKS, OnLost, StreamFollower, jitter


class Stagebus:
    """Talks to one gateway, or to several behind one address.

    Args:
        url: else STAGEBUS_URL, else http://127.0.0.1:8000.
        api_key: else STAGEBUS_API_KEY, else none.
        ticket: in the place of a key, where one run is all that is to be looked at.
        patience_s: for how long a stream looks for a gateway; else for 5 s, and for 300 s where one was there.
        on_lost: hears of each lost stream: the cursor to go on from, and how soon that will be tried.
        transport: another way to the gateway than httpx's own.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        ticket: str | None = None,
        patience_s: float | None = None,
        on_lost: OnLost = lambda _cursor, _wait_s: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**api_requests.connection(url, api_key, ticket), transport=transport)
        self._patience_s = patience_s
        self._on_lost = on_lost
        self._is_found = False
        self.url = str(self._http.base_url).rstrip("/")
        self.runs = Runs(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def tools(self) -> list[Json]:
        """The tools that a run may name."""
        return list(self.call(api_requests.TOOLS)["tools"])

    def models(self) -> list[Json]:
        """The models that a run may name."""
        return list(self.call(api_requests.MODELS)["models"])

    def call(self, call: Call) -> Json:
        """Send a request, again where that may help.

        Raises:
            Refused, Unreachable: it did not.
        """
        tries = 0
        while True:
            response: httpx.Response | None = None
            failure: httpx.TransportError | None = None
            try:
                response = self._http.request(
                    call.method, call.path, json=call.json, params=call.params, headers=call.headers
                )
                answer = None if response.is_error else api_requests.answer_of(response)
                self._is_found = True
                if answer is not None:
                    return answer
            except httpx.TransportError as exc:
                response, failure = None, exc
            tries += 1
            wait_s = api_requests.backoff_s(tries, response, jitter())
            if wait_s is None:
                raise (
                    api_requests.refusal(response) if response is not None else Unreachable(self.url, failure)
                ) from failure
            time.sleep(wait_s)

    def follow(self, run_id: str, place: EventSequencer) -> Generator[Received, None, None]:
        """A run's events after `place`, each once and in order, to the terminal one; it connects again by itself.

        Raises:
            Refused: no such run, or no cursor.
            Unreachable: nobody answers for a long time.
            StreamBroken: what is sent has holes.
        """
        following = StreamFollower(self.url, run_id, place, self._on_lost, self._patience_s, is_found=self._is_found)
        while not following.is_ended:
            timeout = httpx.Timeout(following.silence_s, connect=api_requests.CONNECT_MAX_S)
            failure: Exception | None = None
            try:
                with connect_sse(
                    self._http, "GET", following.path, headers=following.headers, timeout=timeout
                ) as source:
                    if source.response.is_error:
                        source.response.read()
                    if following.open(source.response):
                        for frame in source.iter_sse():
                            if (received := following.take(frame)) is not None:
                                yield received
                            if following.is_ended:
                                return
            except BREAKS as exc:
                failure = exc
            if not following.is_ended:
                time.sleep(following.wait_s(failure))


class Runs:
    """The runs of a gateway."""

    def __init__(self, client: Stagebus) -> None:
        self._client = client

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[RunFields]) -> "Run":
        """Make a run. However often the request has to be sent, it makes one.

        Raises:
            Refused: the request does not hold, or cannot be taken now.
            Unreachable: nobody answers.
        """
        return self.resume((self._client.call(api_requests.create(fields, idempotency_key)))["id"])

    def resume(self, run_id: str, cursor: str = "") -> "Run":
        """A run that was made before, followed from the event after `cursor` on.

        Raises:
            BadCursor: it is neither an event id nor a word for the start.
        """
        return Run(self._client, run_id, cursor)

    def get(self, run_id: str) -> Json:
        """A run as the gateway sees it: status, stages, usage, result, and what it waits for."""
        return self._client.call(api_requests.get(run_id))

    def list(self, limit: int = 20, before: str | None = None, **filters: Unpack[RunFilters]) -> Json:
        """Runs, newest first: `runs`, and `next`, `before` which they go on, even where a page is short or empty."""
        return self._client.call(api_requests.list_runs(limit, before, filters))


class Run:
    """One run: `for` gives its events, each once; `picture` is what they came to so far."""

    def __init__(self, client: Stagebus, run_id: str, cursor: str = "") -> None:
        self.id = run_id
        self.picture = RunState()
        self._client = client
        self._place = EventSequencer(cursor)

    @property
    def cursor(self) -> str:
        """The id of the last event that came: all that has to be kept to go on later."""
        return self._place.cursor

    def __iter__(self) -> Iterator[Received]:
        return self.events()

    def events(self) -> Generator[Received, None, None]:
        """The events after `cursor`, to the terminal one. Within `contextlib.closing` a break closes at once."""
        for received in self._client.follow(self.id, self._place):
            self.picture.add(received)
            yield received

    def get(self) -> Json:
        """The run as the gateway sees it."""
        return self._client.runs.get(self.id)

    def result(self) -> Result:
        """Wait for the end; what the run came to.

        Raises:
            RunFailed, RunCancelled: it did not succeed.
        """
        for _ in self:
            pass
        return result_of(self.get())

    def text(self) -> str:
        """Wait for the end; the answer's text."""
        return (self.result()).text

    def cancel(self) -> None:
        """Stop it, in whatever state it is; safe to repeat."""
        self._client.call(api_requests.cancel(self.id))

    def approve(self, call_id: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Let a call run that waits for a person, with other arguments if they are given.

        Raises:
            Conflict: it was denied before.
        """
        self._client.call(api_requests.decide(self.id, call_id, "approve", arguments=arguments))

    def deny(self, call_id: str, reason: str | None = None) -> None:
        """Refuse a call that waits for a person; the model is told the reason."""
        self._client.call(api_requests.decide(self.id, call_id, "deny", reason=reason))

    def answer(self, call_id: str, text: str) -> None:
        """Answer what the model asked."""
        self._client.call(api_requests.decide(self.id, call_id, "answer", text=text))

    def ticket(self, *, share: bool = False, ttl_s: int | None = None) -> Ticket:
        """What lets somebody without a key look at this run, and at nothing else.

        Args:
            share: a link to pass on, good for a day where `ttl_s` does not say otherwise.
        """
        answer = self._client.call(api_requests.ticket(self.id, share=share, ttl_s=ttl_s))
        return ticket_of(self._client.url, answer)

    def revoke_ticket(self, ticket_id: str) -> None:
        """Take a ticket back, by its `id`: streams that it opened end. Safe to repeat."""
        self._client.call(api_requests.revoke_ticket(self.id, ticket_id))
