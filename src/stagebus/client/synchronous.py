"""The client for threads and scripts. Generated from asynchronous.py by make_synchronous.py."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
from httpx_sse import connect_sse

from stagebus.client import api_requests
from stagebus.client.api_requests import ApiRequest, Json, RunFields, RunFilters, run_path
from stagebus.client.client_errors import Unreachable
from stagebus.client.client_tools_sync import CallAnswerer
from stagebus.client.connection_state import ConnectionState, OnConnection
from stagebus.client.event_sequencer import EventSequencer, RunEvent
from stagebus.client.feed_sequencer import FeedEvent, FeedSequencer
from stagebus.client.open_calls import ClientTools
from stagebus.client.results import Result, Ticket, parse_result, parse_ticket
from stagebus.client.run_state import RunState
from stagebus.client.stream_follower import (
    CONNECTION_ERRORS,
    OnLost,
    Received,
    Sequencer,
    StreamFollower,
    jitter,
)
from stagebus.client.threads_sync import Threads
from stagebus.client.webhooks_sync import Webhooks


class Stagebus:
    """Client of one gateway, or of several behind one address.

    Args:
        url: default STAGEBUS_URL, then http://127.0.0.1:8000.
        api_key: default STAGEBUS_API_KEY, then none.
        ticket: replaces the key, and gives read access to one run.
        user: the person within the tenant for whom all requests are made; the key needs the scope `on_behalf`.
        patience_s: how long a stream tries to reach a gateway; default 5 s, and 300 s once one has answered.
        on_lost: called for each lost stream with the cursor to continue from and the seconds until the next attempt.
        on_connection: called with a run's `connection` after each change of it.
        transport: replaces httpx's own transport.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        ticket: str | None = None,
        user: str | None = None,
        patience_s: float | None = None,
        on_lost: OnLost = lambda _cursor, _wait_s: None,
        on_connection: OnConnection = lambda _connection: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**api_requests.client_options(url, api_key, ticket, user), transport=transport)
        self._patience_s = patience_s
        self._on_lost = on_lost
        self.on_connection = on_connection
        self._is_found = False
        self.url = str(self._http.base_url).rstrip("/")
        self.runs = Runs(self)
        self.threads = Threads(self)
        self.webhooks = Webhooks(self)

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
        return list(self.send(api_requests.TOOLS)["tools"])

    def models(self) -> list[Json]:
        """The models that a run may name."""
        return list(self.send(api_requests.MODELS)["models"])

    def send(self, request: ApiRequest) -> Json:
        """Send a request and return its answer; retry temporary errors.

        Raises:
            Refused: the gateway refused the request.
            Unreachable: no gateway answers.
        """
        tries = 0
        while True:
            response: httpx.Response | None = None
            failure: httpx.TransportError | None = None
            try:
                response = self._http.request(
                    request.method,
                    request.path,
                    json=request.json,
                    params=request.params,
                    headers=request.headers,
                    timeout=request.timeout,
                )
                answer = None if response.is_error else api_requests.parse_answer(response)
                self._is_found = True
                if answer is not None:
                    return answer
            except httpx.TransportError as exc:
                response, failure = None, exc
            tries += 1
            wait_s = api_requests.backoff_s(tries, response, jitter())
            if wait_s is None:
                raise (
                    api_requests.parse_refusal(response) if response is not None else Unreachable(self.url, failure)
                ) from failure
            time.sleep(wait_s)

    def download(self, request: ApiRequest) -> Generator[bytes, None, None]:
        """Yield the parts of an answer as they arrive. Nothing is retried.

        Raises:
            Refused: the gateway refused the request.
            Unreachable: no gateway answers, or the answer is incomplete.
        """
        try:
            with self._http.stream(
                request.method, request.path, headers=request.headers, timeout=request.timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise api_requests.parse_refusal(response)
                yield from response.iter_bytes()
        except httpx.TransportError as exc:
            raise Unreachable(self.url, exc) from exc

    def follow(
        self, path: str, sequencer: Sequencer[Received], connection: ConnectionState
    ) -> Generator[Received, None, None]:
        """Yield the events after the sequencer's cursor, each once and in order, to the last one. Reconnects.

        Args:
            path: of the stream, below the gateway's URL.

        Raises:
            Refused: there is no such stream, or the cursor is invalid.
            Unreachable: no gateway has answered for a long time.
            StreamBroken: the stream contains something other than events.
        """
        follower = StreamFollower(
            self.url, path, sequencer, self._on_lost, self._patience_s, connection, is_found=self._is_found
        )
        while not follower.is_ended:
            failure: Exception | None = None
            try:
                with closing(self._receive(follower)) as events:
                    yield from events
            except CONNECTION_ERRORS as exc:
                failure = exc
            if not follower.is_ended:
                time.sleep(follower.next_wait_s(failure))

    def _receive(self, follower: StreamFollower[Received]) -> Generator[Received, None, None]:
        """Yield the new events of one stream or page."""
        if follower.polls:
            page = self._http.get(follower.path, **follower.begin_page())
            yield from follower.accept_page(page)
            return
        timeout = follower.begin_stream()
        stream = connect_sse(self._http, "GET", follower.path, headers=follower.headers, timeout=timeout)
        with stream as source:
            if source.response.is_error:
                source.response.read()
            if follower.open(source.response):
                for frame in source.iter_sse():
                    yield from follower.accept(frame)
                    if follower.is_ended:
                        return


class Runs:
    """The runs of a gateway."""

    def __init__(self, client: Stagebus) -> None:
        self._client = client

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[RunFields]) -> "Run":
        """Create a run. Retries of the request do not create another one.

        Raises:
            Refused: the request is invalid, or the gateway cannot accept it now.
            Unreachable: no gateway answers.
        """
        return self.resume((self._client.send(api_requests.create_run(fields, idempotency_key)))["id"])

    def create_and_wait(
        self, *, wait_s: int = 30, idempotency_key: str | None = None, **fields: Unpack[RunFields]
    ) -> Json:
        """Create a run and return its record once it has ended or waits for a person, or as it is after `wait_s`.

        Args:
            wait_s: at most 30. `runs.get` waits further.
        """
        return self._client.send(api_requests.create_run(fields, idempotency_key, wait_s))

    def resume(self, run_id: str, cursor: str = "") -> "Run":
        """Return an existing run, to be followed from the event after `cursor`. Sends no request.

        Raises:
            BadCursor: the cursor is not an event id and does not mean the start.
        """
        return Run(self._client, run_id, cursor)

    def get(self, run_id: str, *, wait_s: int = 0) -> Json:
        """Get a run's record: status, stages, usage, result and pending approvals.

        Args:
            wait_s: wait so long, at most 30, until the run has ended or waits for a person.
        """
        return self._client.send(api_requests.get_run(run_id, wait_s))

    def list(self, limit: int = 20, before: str | None = None, **filters: Unpack[RunFilters]) -> Json:
        """List runs, newest first, as `runs` and `next`. Pass `next` as `before` for the next page, even after an empty one."""
        return self._client.send(api_requests.list_runs(limit, before, filters))

    def events(self, cursor: str | None = None) -> Generator[FeedEvent, None, None]:
        """Yield what happens to the tenant's runs, as it happens, without end. Reconnects.

        Args:
            cursor: the id of the last entry seen; "0" for the oldest that is kept; None for what happens from now on.

        Raises:
            BadCursor: the cursor is not an entry's id.
            Refused: the gateway refuses.
            Unreachable: no gateway has answered for a long time.
        """
        if cursor is None:
            cursor = str(self._client.send(api_requests.FEED_END)["last_event_id"])
        yield from self._client.follow(api_requests.FEED_PATH, FeedSequencer(cursor), ConnectionState())


class Run:
    """One run; `for` yields its events, each once.

    Attributes:
        state: built from the events received so far.
        connection: how the events arrive, and what a silent run waits for.
    """

    def __init__(self, client: Stagebus, run_id: str, cursor: str = "") -> None:
        self.id = run_id
        self.state = RunState()
        self.connection = ConnectionState(on_change=client.on_connection)
        self._client = client
        self._sequencer = EventSequencer(cursor)

    @property
    def cursor(self) -> str:
        """The id of the last event; all that a client must keep to continue later."""
        return self._sequencer.cursor

    def __iter__(self) -> Iterator[RunEvent]:
        return self.events()

    def events(self, tools: ClientTools | None = None) -> Generator[RunEvent, None, None]:
        """Yield the events after `cursor`, to the terminal one. In `contextlib.closing`, leaving the loop closes the stream.

        Args:
            tools: functions by the name of the client tool whose calls they answer meanwhile, in the background.
        """
        answering = CallAnswerer(self._client, self.id, tools or {})
        try:
            for received in self._client.follow(run_path(self.id) + "/events", self._sequencer, self.connection):
                self.state.apply(received)
                answering.on_event(received)
                yield received
        finally:
            answering.close()

    def get(self, *, wait_s: int = 0) -> Json:
        """Get the run's record; see `runs.get`."""
        return self._client.runs.get(self.id, wait_s=wait_s)

    def result(self, tools: ClientTools | None = None) -> Result:
        """Wait for the end of the run and return its result.

        Args:
            tools: as for `events`.

        Raises:
            RunFailed: the run ended with an error.
            RunCancelled: the run was cancelled.
        """
        for _ in self.events(tools):
            pass
        return parse_result(self.get())

    def text(self, tools: ClientTools | None = None) -> str:
        """Wait for the end of the run and return the answer's text; `tools` as for `events`."""
        return self.result(tools).text

    def partial_json(self) -> Any:
        """Return the value of a JSON answer so far, from the events received; None if there is none yet."""
        return self.state.partial_json()

    def cancel(self, reason: str | None = None) -> None:
        """Cancel the run, whatever its state; safe to repeat. The reason stands in the run's `cancel` event."""
        self._client.send(api_requests.cancel_run(self.id, reason))

    def delete(self) -> None:
        """Delete the run and all that is stored of it; an active one is cancelled first. Safe to repeat for an hour.

        Raises:
            NotFound: there is no such run.
        """
        self._client.send(api_requests.delete_run(self.id))

    def explain(self) -> Json:
        """Get what has happened to the run (`story`), what it waits for (`waits_for`, `now`), and what would move it (`next`)."""
        return self._client.send(api_requests.explain_run(self.id))

    def export(self) -> Generator[bytes, None, None]:
        """Yield the run as one JSON document, in parts: its record, its request and all its events.

        Raises:
            Refused: there is no such run, or it cannot be exported now.
            Unreachable: no gateway answers, or the document is incomplete.
        """
        yield from self._client.download(api_requests.export_run(self.id))

    def approve(self, call_id: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Approve a call that waits for a person; `arguments` replace the model's.

        Raises:
            Conflict: the call was decided differently before.
        """
        self._client.send(api_requests.decide(self.id, call_id, "approve", arguments=arguments))

    def deny(self, call_id: str, reason: str | None = None) -> None:
        """Deny a call that waits for a person; the model receives the reason."""
        self._client.send(api_requests.decide(self.id, call_id, "deny", reason=reason))

    def answer(self, call_id: str, text: str) -> None:
        """Answer a question of the model."""
        self._client.send(api_requests.decide(self.id, call_id, "answer", text=text))

    def give_result(self, call_id: str, content: str, *, is_error: bool = False, ref: str | None = None) -> None:
        """Give the result of a call that waits for it. The first result is final.

        Args:
            ref: that of the call, which tells it from one of the same id after a loss of data.

        Raises:
            Conflict: the call has another result, or the run has ended.
            NotFound: no such call waits.
        """
        self._client.send(api_requests.give_result(self.id, call_id, content, is_error=is_error, ref=ref))

    def ticket(self, *, share: bool = False, ttl_s: int | None = None, calls: bool = False) -> Ticket:
        """Create a ticket, which gives access to this run without a key.

        Args:
            share: for a link to pass on; valid for a day unless `ttl_s` is given.
            calls: its holder may also give the results of waiting calls.
        """
        answer = self._client.send(api_requests.create_ticket(self.id, share=share, ttl_s=ttl_s, calls=calls))
        return parse_ticket(self._client.url, answer)

    def revoke_ticket(self, ticket_id: str) -> None:
        """Revoke a ticket by its `id` and end the streams opened with it; safe to repeat."""
        self._client.send(api_requests.revoke_ticket(self.id, ticket_id))
