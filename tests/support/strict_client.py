"""A client that follows a run through every disconnect and checks each event.

It keeps only its cursor and the events, as docs/design.md allows a client, and raises `Violation` if an event is
missing, doubled, out of order, or comes after the terminal event.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import orjson
from httpx_sse import aconnect_sse

TERMINAL = {"done", "cancel", "error"}
RETRY_S = 0.05


class Received(NamedTuple):
    """One received event."""

    sequence: int
    id: str
    event: str
    data: dict[str, Any]


class Violation(AssertionError):
    """The stream broke a guarantee."""


class StrictClient:
    """Follows one run, or one of its stages, over any of the gateways."""

    def __init__(self, urls: list[str], run_id: str, stage_id: str | None = None) -> None:
        self.urls = urls
        self.run_id = run_id
        self.stage_id = stage_id
        self.cursor = ""
        self.events: list[Received] = []
        self.gaps = 0
        self.connections = 0
        self.is_ended = False
        self.longest_pause_s = 0.0
        self._received_at: float | None = None
        self._changed = asyncio.Condition()

    @property
    def path(self) -> str:
        middle = "" if self.stage_id is None else f"/stages/{self.stage_id}"
        return f"/runs/{self.run_id}{middle}/events"

    async def follow(self, timeout_s: float = 60, cut_after: Callable[[], int | None] = lambda: None) -> "StrictClient":
        """Follows the run to its terminal event.

        Args:
            cut_after: returns how many events the next connection may bring; None: any number.
        """
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=httpx.Timeout(10, read=20)) as http:
            while not self.is_ended:
                with suppress(httpx.TransportError, OSError):
                    await self._connect(http, cut_after())
                await asyncio.sleep(RETRY_S * random.random())
        return self

    async def _connect(self, http: httpx.AsyncClient, events_max: int | None) -> None:
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        url = random.choice(self.urls) + self.path
        async with aconnect_sse(http, "GET", url, headers=headers) as source:
            if source.response.status_code == 204:
                if not self.events or self.events[-1].event not in TERMINAL:
                    raise Violation(f"204 though the client has no terminal event: {self.run_id} {self.cursor}")
                self.is_ended = True
                return
            if source.response.status_code in {502, 503}:
                return
            if source.response.status_code != 200:
                raise Violation(f"{source.response.status_code}: {await source.response.aread()!r}")
            self.connections += 1
            count = 0
            async for sse in source.aiter_sse():
                if sse.event == "message" and not sse.data:
                    continue
                await self._take(sse.id, sse.event, orjson.loads(sse.data))
                count += 1
                if self.is_ended or (events_max is not None and count >= events_max):
                    return

    async def _take(self, event_id: str, event: str, data: dict[str, Any]) -> None:
        if event == "status":  # not an event of the log
            return
        now = asyncio.get_running_loop().time()
        self.longest_pause_s = max(self.longest_pause_s, now - (self._received_at or now))
        self._received_at = now
        if event == "gap":
            self.gaps += 1
            earliest = int(data["earliest"].split("-")[1])
            self.events = [kept for kept in self.events if kept.sequence < earliest]
            return
        sequence = int(event_id.split("-")[1])
        last = self.events[-1].sequence if self.events else 0
        if sequence <= last:
            raise Violation(f"{self.run_id}: {event_id} {event} after {self.events[-1].id}: doubled or out of order")
        if self.stage_id is None and sequence != last + 1:
            raise Violation(f"{self.run_id}: {event_id} {event} after sequence {last}: events are missing")
        if self.events and self.events[-1].event in TERMINAL:
            raise Violation(f"{self.run_id}: {event} after the terminal event")
        self.cursor = event_id
        self.events.append(Received(sequence, event_id, event, data))
        self.is_ended = event in TERMINAL
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[["StrictClient"], bool], timeout_s: float = 20) -> None:
        """Waits for a condition on the events received so far."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    def names(self) -> list[str]:
        """Returns the names of the events."""
        return [event.event for event in self.events]

    def valid_events(self) -> list[Received]:
        """Returns the events without those that a `stage_restarted` discarded."""
        kept: list[Received] = []
        for event in self.events:
            if event.event == "stage_restarted":
                stage_id, discard_from = event.data["stage_id"], event.data["discard_from"]
                kept = [k for k in kept if k.data["stage_id"] != stage_id or k.sequence < discard_from]
            kept.append(event)
        return kept

    def text(self, stage_id: str) -> str:
        """Returns the text of the model in a stage."""
        return "".join(
            choice.get("delta", {}).get("content") or ""
            for event in self.valid_events()
            if event.event == "tool_completion_chunk" and event.data["stage_id"] == stage_id
            for choice in event.data["tool_results"].get("choices", [])
        )


async def post_run(url: str, body: dict[str, Any], **headers: str) -> str:
    """Creates a run and returns its id."""
    async with httpx.AsyncClient(timeout=15) as http:
        response = await http.post(f"{url}/runs", json=body, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def get_run(url: str, run_id: str) -> dict[str, Any]:
    """Returns the run as GET /runs/{run_id} shows it."""
    async with httpx.AsyncClient(timeout=15) as http:
        response = await http.get(f"{url}/runs/{run_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


async def cancel_run(url: str, run_id: str, reason: str = "of a test") -> None:
    """Cancels a run."""
    async with httpx.AsyncClient(timeout=15) as http:
        response = await http.post(f"{url}/runs/{run_id}/cancel", json={"reason": reason})
    assert response.is_success, response.text


async def stream_lines(url: str, path: str, headers: dict[str, str] | None = None) -> AsyncIterator[str]:
    """Yields the lines of a stream as they were sent."""
    async with httpx.AsyncClient(timeout=15) as http, http.stream("GET", url + path, headers=headers) as response:
        async for line in response.aiter_lines():
            yield line
