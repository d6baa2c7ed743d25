"""Simulated persons who decide on the tool calls of one run in the chaos test, over any gateway, sometimes twice.

The run must act on the decisions that the gateways accepted.
"""

import asyncio
import random
import time
from contextlib import suppress
from typing import Any

import httpx

from tests.support.strict_client import StrictClient

LOOK_S = 0.1
THINK_MAX_S = 3.0
# The shares of calls without a decision, with a repeated one, and with a second, different one.
NEVER, TWICE, CONTRARY = 0.15, 0.3, 0.2
CONTRARIES = {"approve": "deny", "deny": "approve"}


class Deciders:
    """Decides on the calls for which a run asks approval, while a client follows the run."""

    def __init__(self, client: StrictClient, chance: random.Random, patience_s: float) -> None:
        """`patience_s`: for how long an unanswered request is repeated."""
        self._client = client
        self._random = chance
        self._patience_s = patience_s
        self._promised: dict[str, str] = {}
        self.answers: list[int] = []
        self.violations: list[str] = []

    async def decide_all(self) -> None:
        """Decides on calls until cancelled."""
        seen: set[str] = set()
        async with asyncio.TaskGroup() as persons, httpx.AsyncClient(timeout=15) as http:
            while True:
                for call_id in self._ids("approval_required"):
                    if call_id not in seen and self._random.random() >= NEVER:
                        persons.create_task(self._decide(http, call_id))
                    seen.add(call_id)
                await asyncio.sleep(LOOK_S)

    async def _decide(self, http: httpx.AsyncClient, call_id: str) -> None:
        await asyncio.sleep(self._random.uniform(0, THINK_MAX_S))
        decision = self._random.choice(list(CONTRARIES))
        if not await self._post(http, call_id, decision):
            return  # the call expired, or the run was cancelled or ended before
        self._promised[call_id] = decision
        if self._random.random() < TWICE and not await self._post(http, call_id, decision):
            self.violations.append(f"{self._client.run_id} {call_id}: the repeated decision was refused")
        if self._random.random() < CONTRARY and await self._post(http, call_id, CONTRARIES[decision]):
            self.violations.append(f"{self._client.run_id} {call_id}: two contradicting decisions were accepted")

    async def _post(self, http: httpx.AsyncClient, call_id: str, decision: str) -> bool:
        """Sends a decision; returns whether it was accepted."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                url = f"{self._random.choice(self._client.urls)}/runs/{self._client.run_id}/approvals/{call_id}"
                response = await http.post(url, json={"decision": decision})
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.answers.append(response.status_code)
                    if response.status_code not in (200, 202, 409):
                        self.violations.append(f"{url}: {response.status_code} {response.text}")
                    return response.is_success
            await asyncio.sleep(LOOK_S)
        self.violations.append(f"{self._client.run_id} {call_id}: a decision was never answered")
        return False

    def check(self) -> list[str]:
        """Returns the violations, after the run has ended."""
        wrong, run_id = list(self.violations), self._client.run_id
        for event in ("approval_required", "approval_decided"):
            ids = self._ids(event)
            wrong.extend(f"{run_id} {call_id}: {event} twice" for call_id in ids if ids.count(call_id) > 1)
        decided = {data["call_id"]: data["decision"] for data in self._data("approval_decided")}
        started = set(self._ids("tool_call"))
        for call_id in self._ids("approval_required"):
            if decided.get(call_id, self._promised.get(call_id)) != self._promised.get(call_id, decided.get(call_id)):
                wrong.append(
                    f"{run_id} {call_id}: decided as {decided[call_id]}, but {self._promised[call_id]} had been accepted"
                )
            if call_id in started and decided.get(call_id) != "approve":
                wrong.append(f"{run_id} {call_id}: the call ran without approval")
        return wrong

    def _ids(self, event: str) -> list[str]:
        return [data["call_id"] for data in self._data(event)]

    def _data(self, event: str) -> list[dict[str, Any]]:
        return [received.data for received in self._client.events if received.event == event]
