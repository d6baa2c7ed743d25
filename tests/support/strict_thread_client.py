"""A client that follows a thread through every disconnect and checks each frame.

It raises `Violation` if a turn or an event is missing, doubled or out of order, or if a turn begins before the end of the one
before it.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import aconnect_sse

from stagebus.client import AsyncStagebus, ClientError
from tests.support.python_client import RandomGatewayTransport
from tests.support.strict_client import RETRY_S, TERMINAL, Received, Violation

_AWAY = {502, 503}


@dataclass
class FollowedTurn:
    """One turn as a client has received it."""

    run_id: str
    seq: int
    parent_run_id: str | None
    messages: list[dict[str, Any]]
    events: list[Received] = field(default_factory=list)
    is_deleted: bool = False

    @property
    def is_ended(self) -> bool:
        """True if nothing more can follow in this turn."""
        return self.is_deleted or bool(self.events and self.events[-1].event in TERMINAL)


class StrictThreadClient:
    """Follows one thread over any of the gateways."""

    def __init__(self, urls: list[str], thread_id: str, cursor: str = "") -> None:
        self.urls = urls
        self.thread_id = thread_id
        self.cursor = cursor
        self.ids: list[str] = []
        self.turns: list[FollowedTurn] = []
        self.waiting: list[str] = []
        self.connections = 0
        self._told: set[str] = set()  # turns that this connection has begun
        self._is_resumed = bool(cursor)

    @property
    def path(self) -> str:
        return f"/threads/{quote(self.thread_id, safe='')}/events"

    @property
    def seq(self) -> int:
        """The place of the newest turn that the client knows."""
        return self.turns[-1].seq if self.turns else 0

    @property
    def is_between_turns(self) -> bool:
        return not self.turns or self.turns[-1].is_ended

    async def follow(self, cut_after: Callable[[], int | None] = lambda: None, *, until_idle: bool = False) -> None:
        """Follows the thread: for ever, or until it is idle.

        Args:
            cut_after: returns how many frames the next connection may bring; None: any number.
        """
        is_ended = False
        async with httpx.AsyncClient(timeout=httpx.Timeout(10, read=20)) as http:
            while not is_ended:
                with suppress(httpx.TransportError, OSError):
                    is_ended = await self._connect(http, cut_after(), until_idle=until_idle)
                await asyncio.sleep(RETRY_S * random.random())

    async def _connect(self, http: httpx.AsyncClient, frames_max: int | None, *, until_idle: bool) -> bool:
        """Follows over one connection; returns whether the gateway ended the stream for good."""
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        url = random.choice(self.urls) + self.path + ("?until=idle" if until_idle else "")
        async with aconnect_sse(http, "GET", url, headers=headers) as source:
            status = source.response.status_code
            if status == httpx.codes.NO_CONTENT and until_idle and self.is_between_turns:
                return True
            if status in _AWAY:
                return False
            if status != httpx.codes.OK:
                raise Violation(f"{self}: {status} {await source.response.aread()!r}")
            self.connections += 1
            self._told.clear()
            count = 0
            async for sse in source.aiter_sse():
                if sse.event == "message" and not sse.data:
                    continue
                self.take(sse.id, sse.event, sse.json())
                count += 1
                if frames_max is not None and count >= frames_max:
                    return False
        return False

    def take(self, event_id: str, event: str, data: dict[str, Any]) -> None:
        """Takes a frame.

        Raises:
            Violation: it must not come now.
        """
        match event:
            case "status":
                return
            case "turn":
                self._begin(data)
            case "turn_deleted":
                self._delete(data)
                if event_id.startswith(f"{data['run_id']}."):  # in place of the turn; other frames repeat the last id
                    self.cursor = event_id
            case "waiting":
                self.waiting = [run["run_id"] for run in data["runs"]]
                if len(set(self.waiting)) != len(self.waiting):
                    raise Violation(f"{self}: a run waits twice: {self.waiting}")
            case "gap" | "turn_snapshot":
                raise Violation(f"{self}: {event} though no log has expired: {data}")
            case _:
                self._add(event_id, event, data)

    def _begin(self, data: dict[str, Any]) -> None:
        turn = FollowedTurn(data["run_id"], data["seq"], data["parent_run_id"], data["messages"])
        if self.turns and turn.seq == self.seq:
            known = self.turns[-1]
            is_same = (known.run_id, known.parent_run_id, known.messages) == (
                turn.run_id,
                turn.parent_run_id,
                turn.messages,
            )
            if not is_same or turn.run_id in self._told:
                raise Violation(f"{self}: turn {turn.run_id} is told again: {data}")
        else:
            self._check_next(turn.run_id, turn.seq)
            self.turns.append(turn)
        self._told.add(turn.run_id)

    def _delete(self, data: dict[str, Any]) -> None:
        run_id, seq = data["run_id"], data["seq"]
        if seq > self.seq:
            self._check_next(run_id, seq)
            self.turns.append(FollowedTurn(run_id, seq, data["parent_run_id"], []))
        for turn in self.turns:
            if turn.run_id == run_id:
                turn.is_deleted = True

    def _check_next(self, run_id: str, seq: int) -> None:
        if not self.is_between_turns:
            raise Violation(f"{self}: turn {seq} {run_id} before the end of {self.turns[-1].run_id}")
        if seq != self.seq + 1 and not (self._is_resumed and not self.turns):
            raise Violation(f"{self}: turn {seq} {run_id} after turn {self.seq}")
        if any(turn.run_id == run_id for turn in self.turns):
            raise Violation(f"{self}: {run_id} has two turns")

    def _add(self, thread_event_id: str, event: str, data: dict[str, Any]) -> None:
        run_id, _, event_id = thread_event_id.partition(".")
        turn = self.turns[-1] if self.turns else None
        if turn is None or turn.run_id != run_id or turn.is_ended:
            raise Violation(f"{self}: {thread_event_id} {event} in turn {turn and turn.run_id}")
        sequence = int(event_id.split("-")[1])
        last = turn.events[-1].sequence if turn.events else self._sequence_before(run_id)
        if sequence != last + 1:
            raise Violation(f"{self}: {thread_event_id} {event} after sequence {last}")
        turn.events.append(Received(sequence, event_id, event, data))
        self.ids.append(thread_event_id)
        self.cursor = thread_event_id

    def _sequence_before(self, run_id: str) -> int:
        """Returns the sequence before the first event: that of the cursor with which the client began."""
        in_run = not self.ids and self.cursor.startswith(f"{run_id}.")
        return int(self.cursor.rpartition("-")[2]) if in_run else 0

    def __str__(self) -> str:
        return f"thread {self.thread_id} after {self.cursor or 'its start'}"


class PythonThreadClient(StrictThreadClient):
    """Follows one thread with `stagebus.client`, whose connections end at any byte."""

    def __init__(self, urls: list[str], thread_id: str, cut_max: int) -> None:
        """`cut_max`: cut each connection after at most so many bytes; 0 cuts none."""
        super().__init__(urls, thread_id)
        self._cut_max = cut_max

    async def follow(self, _cut_after: object = None, *, until_idle: bool = False) -> None:
        """Follows the thread: for ever, or until it is idle."""
        transport = RandomGatewayTransport(self, self._cut_max)
        async with AsyncStagebus(self.urls[0], transport=transport, patience_s=600) as bus:
            try:
                async with aclosing(bus.threads.open(self.thread_id).events(until_idle=until_idle)) as events:
                    async for seen in events:
                        self.take(seen.id, seen.event, seen.data)
            except ClientError as exc:
                raise Violation(f"{self}: the client ended with {exc!r}") from exc
