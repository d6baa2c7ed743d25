"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
from httpx_sse import aconnect_sse

from stagebus.client import api_requests
from stagebus.client.api_requests import Call, Json, RunFields, RunFilters
from stagebus.client.client_errors import Unreachable
from stagebus.client.event_sequencer import EventSequencer, Received
from stagebus.client.results import Result, Ticket, result_of, ticket_of
from stagebus.client.run_state import RunState
from stagebus.client.stream_follower import BREAKS, OnLost, StreamFollower, jitter


class AsyncStagebus:
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**api_requests.connection(url, api_key, ticket), transport=transport)
        self._patience_s = patience_s
        self._on_lost = on_lost
        self._is_found = False
        self.url = str(self._http.base_url).rstrip("/")
        self.runs = AsyncRuns(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def tools(self) -> list[Json]:
        """The tools that a run may name."""
        return list((await self.call(api_requests.TOOLS))["tools"])

    async def models(self) -> list[Json]:
        """The models that a run may name."""
        return list((await self.call(api_requests.MODELS))["models"])

    async def call(self, call: Call) -> Json:
        """Send a request, again where that may help.

        Raises:
            Refused, Unreachable: it did not.
        """
        tries = 0
        while True:
            response: httpx.Response | None = None
            failure: httpx.TransportError | None = None
            try:
                response = await self._http.request(
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
            await asyncio.sleep(wait_s)

    async def follow(self, run_id: str, place: EventSequencer) -> AsyncGenerator[Received, None]:
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
                async with aconnect_sse(
                    self._http, "GET", following.path, headers=following.headers, timeout=timeout
                ) as source:
                    if source.response.is_error:
                        await source.response.aread()
                    if following.open(source.response):
                        async for frame in source.aiter_sse():
                            if (received := following.take(frame)) is not None:
                                yield received
                            if following.is_ended:
                                return
            except BREAKS as exc:
                failure = exc
            if not following.is_ended:
                await asyncio.sleep(following.wait_s(failure))


class AsyncRuns:
    """The runs of a gateway."""

    def __init__(self, client: AsyncStagebus) -> None:
        self._client = client

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[RunFields]) -> "AsyncRun":
        """Make a run. However often the request has to be sent, it makes one.

        Raises:
            Refused: the request does not hold, or cannot be taken now.
            Unreachable: nobody answers.
        """
        return self.resume((await self._client.call(api_requests.create(fields, idempotency_key)))["id"])

    def resume(self, run_id: str, cursor: str = "") -> "AsyncRun":
        """A run that was made before, followed from the event after `cursor` on.

        Raises:
            BadCursor: it is neither an event id nor a word for the start.
        """
        return AsyncRun(self._client, run_id, cursor)

    async def get(self, run_id: str) -> Json:
        """A run as the gateway sees it: status, stages, usage, result, and what it waits for."""
        return await self._client.call(api_requests.get(run_id))

    async def list(self, limit: int = 20, before: str | None = None, **filters: Unpack[RunFilters]) -> Json:
        """Runs, newest first: `runs`, and `next`, `before` which they go on, even where a page is short or empty."""
        return await self._client.call(api_requests.list_runs(limit, before, filters))


class AsyncRun:
    """One run: `async for` gives its events, each once; `picture` is what they came to so far."""

    def __init__(self, client: AsyncStagebus, run_id: str, cursor: str = "") -> None:
        self.id = run_id
        self.picture = RunState()
        self._client = client
        self._place = EventSequencer(cursor)

    @property
    def cursor(self) -> str:
        """The id of the last event that came: all that has to be kept to go on later."""
        return self._place.cursor

    def __aiter__(self) -> AsyncIterator[Received]:
        return self.events()

    async def events(self) -> AsyncGenerator[Received, None]:
        """The events after `cursor`, to the terminal one. Within `contextlib.aclosing` a break closes at once."""
        async for received in self._client.follow(self.id, self._place):
            self.picture.add(received)
            yield received

    async def get(self) -> Json:
        """The run as the gateway sees it."""
        return await self._client.runs.get(self.id)

    async def result(self) -> Result:
        """Wait for the end; what the run came to.

        Raises:
            RunFailed, RunCancelled: it did not succeed.
        """
        async for _ in self:
            pass
        return result_of(await self.get())

    async def text(self) -> str:
        """Wait for the end; the answer's text."""
        return (await self.result()).text

    async def cancel(self) -> None:
        """Stop it, in whatever state it is; safe to repeat."""
        await self._client.call(api_requests.cancel(self.id))

    async def approve(self, call_id: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Let a call run that waits for a person, with other arguments if they are given.

        Raises:
            Conflict: it was denied before.
        """
        await self._client.call(api_requests.decide(self.id, call_id, "approve", arguments=arguments))

    async def deny(self, call_id: str, reason: str | None = None) -> None:
        """Refuse a call that waits for a person; the model is told the reason."""
        await self._client.call(api_requests.decide(self.id, call_id, "deny", reason=reason))

    async def answer(self, call_id: str, text: str) -> None:
        """Answer what the model asked."""
        await self._client.call(api_requests.decide(self.id, call_id, "answer", text=text))

    async def ticket(self, *, share: bool = False, ttl_s: int | None = None) -> Ticket:
        """What lets somebody without a key look at this run, and at nothing else.

        Args:
            share: a link to pass on, good for a day where `ttl_s` does not say otherwise.
        """
        answer = await self._client.call(api_requests.ticket(self.id, share=share, ttl_s=ttl_s))
        return ticket_of(self._client.url, answer)

    async def revoke_ticket(self, ticket_id: str) -> None:
        """Take a ticket back, by its `id`: streams that it opened end. Safe to repeat."""
        await self._client.call(api_requests.revoke_ticket(self.id, ticket_id))
