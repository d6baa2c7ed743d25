"""Simulated clients that answer the waiting calls of one run in the chaos test, over any gateway, often several at once.

The model must get the result that a gateway accepted first.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import httpx

from tests.support.strict_client import Received

LOOK_S = 0.1
THINK_MAX_S = 3.0
CLIENTS_MAX = 3
NEVER, TWICE = 0.15, 0.3
DEFINITION = {
    "type": "function",
    "function": {"name": "fetch", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}


class FollowedRun(Protocol):
    """A run and its events, as a client has received them so far."""

    urls: list[str]
    run_id: str

    @property
    def events(self) -> Sequence[Received]: ...


class ResultGivers:
    """Answers the calls that wait for a result, while a client follows the run."""

    def __init__(self, client: FollowedRun, chance: random.Random, patience_s: float) -> None:
        """`patience_s`: for how long an unanswered request is repeated."""
        self._client = client
        self._random = chance
        self._patience_s = patience_s
        self._accepted: dict[str, set[str]] = {}
        self.answers: list[int] = []
        self.violations: list[str] = []

    @property
    def run_id(self) -> str:
        return self._client.run_id

    async def answer_all(self) -> None:
        """Answers calls until cancelled."""
        seen: set[str] = set()
        async with asyncio.TaskGroup() as clients, httpx.AsyncClient(timeout=15) as http:
            while True:
                for call in self._data("call_deferred"):
                    if call["call_id"] not in seen and self._random.random() >= NEVER:
                        for number in range(self._random.randint(1, CLIENTS_MAX)):
                            clients.create_task(self._answer(http, call, f"client {number}"))
                    seen.add(call["call_id"])
                await asyncio.sleep(LOOK_S)

    async def _answer(self, http: httpx.AsyncClient, call: dict[str, Any], name: str) -> None:
        await asyncio.sleep(self._random.uniform(0, THINK_MAX_S))
        if call["kind"] == "client":
            await self._post(http, call, "claim", {"holder": name})  # whether it gets it or not: anybody may answer
        content = f"{name} fetched {call['arguments']}"
        if not await self._post(http, call, "result", {"content": content}):
            return  # another one was first, the call expired, or the run ended before
        self._accepted.setdefault(call["call_id"], set()).add(content)
        if self._random.random() < TWICE and not await self._post(http, call, "result", {"content": content}):
            self.violations.append(f"{self._client.run_id} {call['call_id']}: the repeated result was refused")

    async def _post(self, http: httpx.AsyncClient, call: dict[str, Any], what: str, body: dict[str, str]) -> bool:
        """Sends a request; returns whether it was accepted."""
        deadline = time.monotonic() + self._patience_s
        path = f"/runs/{self._client.run_id}/calls/{call['call_id']}/{what}"
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                url = self._random.choice(self._client.urls) + path
                response = await http.post(url, json={**body, "ref": call["ref"]})
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.answers.append(response.status_code)
                    if response.status_code not in (200, 202, 409):
                        self.violations.append(f"{url}: {response.status_code} {response.text}")
                    return response.is_success
            await asyncio.sleep(LOOK_S)
        self.violations.append(f"{path}: never answered")
        return False

    def check(self) -> list[str]:
        """Returns the violations, after the run has ended."""
        wrong, run_id = list(self.violations), self._client.run_id
        ids = [call["call_id"] for call in self._data("call_deferred")]
        wrong.extend(f"{run_id} {call_id}: call_deferred twice" for call_id in set(ids) if ids.count(call_id) > 1)
        results = {data["call_id"]: data["content"] for data in self._data("tool_result")}
        for call_id, accepted in self._accepted.items():
            if len(accepted) > 1:
                wrong.append(f"{run_id} {call_id}: two results were accepted: {accepted}")
            if call_id in results and results[call_id] not in accepted:
                wrong.append(f"{run_id} {call_id}: {accepted} was accepted, and the model got {results[call_id]!r}")
        return wrong

    def _data(self, event: str) -> list[dict[str, Any]]:
        return [received.data for received in self._client.events if received.event == event]
