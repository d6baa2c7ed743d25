"""Functions that answer the calls of client tools, with both Python clients."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stagebus.client import (
    AsyncStagebus,
    Stagebus,
    call_tasks_async,
    call_tasks_sync,
    client_tools_async,
    client_tools_sync,
)
from stagebus.client.event_sequencer import RunEvent
from stagebus.client.open_calls import OpenCall, OpenCalls
from tests.support.fake_gateway import DONE, RETRY, Answer, Asked, FakeGateway, frame
from tests.support.waiting import until

Run = Callable[..., Awaitable[None]]


def deferred(sequence: int, call_id: str = "c", ref: str = "7-1", **more: Any) -> bytes:
    data = {
        "stage_id": "tools",
        "call_id": call_id,
        "name": "read_file",
        "arguments": '{"path": "a"}',
        "kind": "client",
    }
    return frame(sequence, "call_deferred", json.dumps(data | {"expires_at": 1, "ref": ref} | more))


def answered(sequence: int, call_id: str = "c") -> bytes:
    return frame(sequence, "tool_result", json.dumps({"stage_id": "tools", "call_id": call_id, "content": "x"}))


class World:
    """A gateway whose run has the given frames, and waits for its results before it ends."""

    def __init__(self, *frames: bytes, refusals: dict[str, list[Answer]] | None = None) -> None:
        self.frames = list(frames)
        self.results: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self._refusals = refusals or {}

    def __call__(self, asked: Asked) -> Answer:
        what = asked.path.rpartition("/")[2]
        if asked.method == "POST":
            (self.claims if what == "claim" else self.results).append(json.loads(asked.body))
            if self._refusals.get(what):
                return self._refusals[what].pop(0)
            if what == "result":
                self.frames += [answered(len(self.frames) + 1), frame(len(self.frames) + 2, "done", DONE)]
            return Answer(b'{"until": 1}', 200, "application/json")
        cursor = int(asked.headers.get("last-event-id", "7-0").split("-")[1])
        return Answer(RETRY + b"".join(self.frames[cursor:]))


def refused(code: str, status: int = 409) -> Answer:
    return Answer(json.dumps({"code": code, "detail": code}).encode(), status, "application/problem+json")


async def _follow(url: str, tools: dict[str, Any]) -> None:
    async with AsyncStagebus(url) as bus:
        async for _ in bus.runs.resume("01J").events(tools):
            pass


async def _follow_in_a_thread(url: str, tools: dict[str, Any]) -> None:
    def follow() -> None:
        with Stagebus(url) as bus:
            for _ in bus.runs.resume("01J").events(tools):
                pass

    await asyncio.to_thread(follow)


@pytest.fixture(params=[_follow, _follow_in_a_thread], ids=["asynchronous", "synchronous"])
def follow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    for module in (client_tools_async, client_tools_sync):
        monkeypatch.setattr(module, "RETRY_S", 0.01)
    for tasks in (call_tasks_async, call_tasks_sync):
        monkeypatch.setattr(tasks, "RENEW_S", 0.05)
    return request.param


async def test_call_is_claimed_run_and_answered(follow: Run) -> None:
    world = World(deferred(1))
    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": lambda path: {"path": path, "size": 3}})

    assert world.results == [{"content": '{"path": "a", "size": 3}', "is_error": False, "ref": "7-1"}]
    assert [claim["ref"] for claim in world.claims] == ["7-1"]


async def test_exception_of_a_function_is_a_result(follow: Run) -> None:
    def read_file(path: str) -> str:
        raise FileNotFoundError(path)

    world = World(deferred(1))
    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": read_file})

    assert [(result["content"], result["is_error"]) for result in world.results] == [("FileNotFoundError: a", True)]


async def test_claim_is_renewed_while_the_function_runs(follow: Run) -> None:
    world, is_renewed = World(deferred(1)), threading.Event()

    def read_file(path: str) -> str:
        while len(world.claims) < 3:
            is_renewed.wait(0.01)
        return path

    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": read_file})

    assert len({claim["holder"] for claim in world.claims}) == 1
    assert len(world.claims) >= 3


async def test_call_of_another_client_is_taken_over_when_its_claim_ends(follow: Run) -> None:
    world = World(deferred(1), refusals={"claim": [refused("call_claimed"), refused("call_claimed")]})
    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": lambda path: path})

    assert (len(world.claims), len(world.results)) == (3, 1)


@pytest.mark.parametrize(
    ("announced", "refusal"),
    [
        (deferred(1), "call_has_result"),
        (deferred(1, once=True), "call_claimed"),
        (deferred(1, name="other"), ""),
        (deferred(1, kind="deferred"), ""),
    ],
    ids=["answered", "once", "another tool", "no client's"],
)
async def test_call_that_is_not_this_clients_is_left_alone(follow: Run, announced: bytes, refusal: str) -> None:
    ran = []
    refusals = {"claim": [refused(refusal)]} if refusal else {}
    world = World(announced, answered(2), frame(3, "done", DONE), refusals=refusals)
    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": ran.append})

    assert (ran, world.results) == ([], [])


async def test_result_that_is_too_large_becomes_an_error(follow: Run) -> None:
    world = World(deferred(1), refusals={"result": [refused("result_too_large", 413)]})
    async with FakeGateway(world) as gateway:
        await follow(gateway.url, {"read_file": lambda path: path})

    assert [result["is_error"] for result in world.results] == [False, True]


def test_result_is_kept_for_a_call_that_is_open_again() -> None:
    """The gateway lost the result with Redis's tail; the function must not run again."""
    calls = OpenCalls({"read_file"})
    event = RunEvent("7-1", "call_deferred", json.loads(deferred(1).split(b"data: ")[1]))
    call = calls.apply(event)
    assert call == OpenCall("7-1", "c", "read_file", '{"path": "a"}', False)
    calls.keep(call, client_tools_async.CallOutcome("read"))
    calls.apply(RunEvent("", "gap", {"earliest": "7-1"}))
    assert not calls.is_open(call)

    again = calls.apply(event)
    assert again is not None
    assert calls.outcome_of(again) == client_tools_async.CallOutcome("read")
    calls.apply(RunEvent("7-2", "done", {}))
    assert not calls.is_open(call)


async def test_runs_of_a_thread_have_calls_of_their_own() -> None:
    """Two runs with the same call ids: each gets its own result."""
    answered_runs: list[str] = []
    frames = [
        f'event: turn\ndata: {{"run_id": "{run}", "parent_run_id": null, "seq": {at}, "messages": []}}\n\n'.encode()
        + deferred(1, ref=f"7-{at}").replace(b"id: 7-1", f"id: {run}.7-1".encode())
        for at, run in enumerate(["01A", "01B"], 1)
    ]

    def answer(asked: Asked) -> Answer:
        if asked.method == "POST":
            if asked.path.endswith("/result"):
                answered_runs.append(asked.path.split("/")[2])
            return Answer(b'{"until": 1}', 200, "application/json")
        return Answer(RETRY + b"".join(frames))

    async with FakeGateway(answer) as gateway, AsyncStagebus(gateway.url) as bus:
        events = bus.threads.open("t").events(tools={"read_file": lambda path: path})
        async for received in events:
            if received.run_id == "01B" and received.event == "call_deferred":
                await until(lambda: len(answered_runs) == 2)
                break
        await events.aclose()

    assert sorted(answered_runs) == ["01A", "01B"]
