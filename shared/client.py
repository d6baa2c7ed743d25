"""A client of the gateway: makes runs, and follows them through every disconnect.

    async with Client("http://127.0.0.1:8000") as client:
        run = await client.create_run({"user_prompt": "What is the weather in Paris?"})
        async for id, event, data in client.follow(run["id"]):
            ...

What it keeps of a run is its cursor. `Place` is the whole rule book and does no I/O.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
import orjson
from httpx_sse import ServerSentEvent, aconnect_sse

from shared.cursor import parse_cursor, parse_id
from shared.errors import GatewayUnreachable, RequestRefused, StreamBroken
from shared.events import TERMINAL_NAMES, Gap
from shared.exposure import is_loopback

CONNECT_MAX_S: Final = 5.0
ANSWER_MAX_S: Final = 15.0
# Three of the gateway's pings.
SILENCE_MAX_S: Final = 35.0
TRIES_MAX: Final = 4
RETRY_S: Final = 0.25
FOLLOW_RETRY_S: Final = 1.0
BACKOFF_MAX_S: Final = 15.0
# How long to look for a gateway that was never there, and for one that was.
FIRST_CONTACT_MAX_S: Final = 5.0
PATIENCE_S: Final = 300.0
HOLES_MAX: Final = 3

_OK: Final = 200
_NO_CONTENT: Final = 204
_ERRORS_FROM: Final = 400
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Followed(NamedTuple):
    """One event; of a `gap` the id is empty."""

    id: str
    event: str
    data: dict[str, Any]


class Hole(Exception):
    """The stream skipped events: ask again from the cursor."""


class Place:
    """How far a client has followed a run: what it must know to miss nothing and see nothing twice."""

    def __init__(self, cursor: str = "") -> None:
        """Start after `cursor`.

        Raises:
            BadCursor: it is neither an event id nor a word for the start.
        """
        start = parse_cursor(cursor)
        self.cursor = str(start) if start.sequence else ""
        self.is_ended = False
        self._sequence = start.sequence

    def take(self, event_id: str, event: str, data: dict[str, Any]) -> Followed | None:
        """Go on by one frame; None where the client has its event already.

        Raises:
            Hole: events between the last one and this one did not come.
        """
        if event == Gap.event:
            # The server takes back what it sent from here on: the log lost it, and it comes anew.
            self._sequence = parse_id(data["earliest"]).sequence - 1
            return Followed("", event, data)
        sequence = parse_id(event_id).sequence
        if sequence <= self._sequence:
            return None
        if sequence != self._sequence + 1:
            raise Hole(f"{event_id} after sequence {self._sequence}")
        self._sequence = sequence
        self.cursor = event_id
        self.is_ended = event in TERMINAL_NAMES
        return Followed(event_id, event, data)


class Client:
    """Calls one gateway, or several behind one address."""

    def __init__(
        self,
        url: str,
        on_lost: Callable[[str, float], None] = lambda _cursor, _wait_s: None,
        api_key: str | None = None,
    ) -> None:
        """`on_lost` hears of each lost stream: the cursor to go on from, and how soon that will be tried.

        Args:
            api_key: a key or token; that of STAGEBUS_API_KEY where left out.
        """
        key = os.environ.get("STAGEBUS_API_KEY", "") if api_key is None else api_key
        self.url = url.rstrip("/")
        self._on_lost = on_lost
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER_MAX_S, connect=CONNECT_MAX_S),
            # A proxy that the environment names is not the way to this machine.
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create_run(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a run; the answer's body with its id. One call makes one run, however often it is sent.

        Raises:
            RequestRefused: the request does not hold, or cannot be taken now.
            GatewayUnreachable: nobody answers.
        """
        return await self._call("POST", "/runs", json=dict(body), headers={"Idempotency-Key": uuid4().hex})

    async def list_runs(self, limit: int, **filters: str) -> list[dict[str, Any]]:
        """The newest runs that the filters want."""
        found: list[dict[str, Any]] = []
        params: dict[str, str | int] = {**filters, "limit": limit}
        while True:
            page = await self._call("GET", "/runs", params=params)
            found += page["runs"]
            # A page may be short: a search looks at so many runs at once.
            if page["next"] is None or len(found) >= limit:
                return found[:limit]
            params["before"] = page["next"]

    async def list_models(self) -> dict[str, Any]:
        """What a run may name as its model."""
        return await self._call("GET", "/models")

    async def get_run(self, run_id: str) -> dict[str, Any]:
        """One run with its stages and its result."""
        return await self._call("GET", _run_path(run_id))

    async def cancel_run(self, run_id: str) -> dict[str, Any]:
        """Cancel a run, in whatever state it is."""
        return await self._call("POST", _run_path(run_id) + "/cancel")

    async def follow(self, run_id: str, cursor: str = "") -> AsyncGenerator[Followed, None]:
        """A run's events after `cursor`, each once and in order, to the terminal one.

        It connects again by itself. A `gap` says that the log lost a part: what came from the
        sequence of its `earliest` on is void and comes again as it now is. Use it within
        `contextlib.aclosing`, which closes the connection.

        Raises:
            RequestRefused: no such run, or no cursor.
            GatewayUnreachable: nobody answers for a long time.
            StreamBroken: what is sent has holes.
        """
        place, backoff = Place(cursor), _Backoff()
        while not place.is_ended:
            try:
                async with aclosing(self._connect(run_id, place, backoff)) as events:
                    async for event in events:
                        yield event
            except (httpx.TransportError, httpx.StreamError):
                pass
            except (Hole, ValueError) as exc:
                backoff.holes += 1
                if backoff.holes > HOLES_MAX:
                    raise StreamBroken(f"run {run_id}: {exc}, each time that it is asked for") from exc
            if not place.is_ended:
                if backoff.is_over:
                    raise self._unreachable()
                wait_s = backoff.next_s()
                self._on_lost(place.cursor, wait_s)
                await asyncio.sleep(wait_s)

    async def _connect(self, run_id: str, place: Place, backoff: "_Backoff") -> AsyncGenerator[Followed, None]:
        """The events of one connection."""
        async with aconnect_sse(
            self._http,
            "GET",
            _run_path(run_id) + "/events",
            headers={"Last-Event-ID": place.cursor} if place.cursor else {},
            timeout=httpx.Timeout(SILENCE_MAX_S, connect=CONNECT_MAX_S),
        ) as source:
            status = source.response.status_code
            if status in _PASSING:
                return
            if status not in (_OK, _NO_CONTENT):
                await source.response.aread()
                raise _refusal(source.response)
            backoff.reach()
            if status == _NO_CONTENT:
                place.is_ended = True
                return
            async for frame in source.aiter_sse():
                if frame.retry is not None:
                    backoff.base_s = frame.retry / 1000
                followed = _take(place, frame)
                if followed is not None:
                    backoff.advance()
                    yield followed
                if place.is_ended:
                    return

    async def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """One request, repeated while the trouble may pass: all that this client asks is safe to repeat."""
        for tries_left in range(TRIES_MAX - 1, -1, -1):
            try:
                response = await self._http.request(method, path, **request)
            except httpx.TransportError as exc:
                if not tries_left:
                    raise self._unreachable() from exc
            else:
                if response.status_code < _ERRORS_FROM:
                    return dict(response.json())
                if response.status_code not in _PASSING or not tries_left:
                    raise _refusal(response)
            await asyncio.sleep(RETRY_S * 2 ** (TRIES_MAX - 1 - tries_left) * _jitter())
        raise AssertionError("the last try returns or raises")

    def _unreachable(self) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"no gateway answers at {self.url}: start one with `stagebus up`, or say with --url or STAGEBUS_URL where "
            "it is"
        )


class _Backoff:
    """When to connect again, and when to give up."""

    def __init__(self) -> None:
        self.base_s = FOLLOW_RETRY_S
        self.holes = 0
        self._failures = 0
        self._deadline = time.monotonic() + FIRST_CONTACT_MAX_S

    @property
    def is_over(self) -> bool:
        """Whether nobody has answered for too long."""
        return time.monotonic() > self._deadline

    def reach(self) -> None:
        """A gateway answered."""
        self._deadline = time.monotonic() + PATIENCE_S

    def advance(self) -> None:
        """An event came."""
        self.reach()
        self._failures = self.holes = 0

    def next_s(self) -> float:
        """How long to wait now; longer each time until an event comes."""
        wait_s = min(self.base_s * 2.0**self._failures, BACKOFF_MAX_S) * _jitter()
        self._failures += 1
        return wait_s


def _take(place: Place, frame: ServerSentEvent) -> Followed | None:
    if not frame.data:  # a retry frame
        return None
    return place.take(frame.id, frame.event, orjson.loads(frame.data))


def _refusal(response: httpx.Response) -> RequestRefused:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    return RequestRefused(response.status_code, problem if isinstance(problem, dict) else {})


def _run_path(run_id: str) -> str:
    return f"/runs/{quote(run_id, safe='')}"


def _jitter() -> float:
    """So that those who lost the same gateway do not all come back at once."""
    return 0.5 + random.random() / 2  # noqa: S311 - no secret
