"""The Python client, asynchronous and synchronous: events in order, requests, results and run states."""

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from stagebus import client as stagebus_client
from stagebus.client import (
    AsyncStagebus,
    BadKey,
    BadUserName,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refused,
    RunCancelled,
    RunEvent,
    RunFailed,
    RunState,
    Stagebus,
    Unauthenticated,
    Unavailable,
    api_requests,
)
from stagebus.client.results import parse_result, parse_ticket
from stagebus.gateway.api.problems import problem_types
from stagebus.gateway.api.urls import Urls
from tests.support.fake_gateway import DONE, RETRY, Answer, Asked, FakeGateway, frame

LOG = [frame(1), frame(2), frame(3), frame(4, "done", DONE)]
WHOLE = RETRY + b"".join(LOG)
Follow = Callable[..., Awaitable[list[RunEvent]]]


async def _follow(url: str, run_id: str = "01J", cursor: str = "") -> list[RunEvent]:
    async with AsyncStagebus(url) as bus:
        return [received async for received in bus.runs.resume(run_id, cursor)]


async def _follow_in_a_thread(url: str, run_id: str = "01J", cursor: str = "") -> list[RunEvent]:
    def follow() -> list[RunEvent]:
        with Stagebus(url) as bus:
            return list(bus.runs.resume(run_id, cursor))

    return await asyncio.to_thread(follow)


@pytest.fixture(params=[_follow, _follow_in_a_thread], ids=["asynchronous", "synchronous"])
def follow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Follow:
    monkeypatch.setattr(stagebus_client.stream_follower, "RETRY_S", 0)
    return request.param


def test_synchronous_client_is_generated_from_the_asynchronous_one() -> None:
    path = Path(__file__).parents[3] / "clients" / "python" / "make_synchronous.py"
    spec = importlib.util.spec_from_file_location("make_synchronous", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    for source, target in module.FILES:
        text = (module.CLIENT / target).read_text()
        assert text == module.generate_synchronous(source), "python clients/python/make_synchronous.py"


async def test_cut_stream_yields_each_event_once(follow: Follow) -> None:
    """The first connection of each run is cut; its next ones send what follows the cursor."""
    seen: set[str] = set()

    def answer(asked: Asked) -> Answer:
        if asked.path not in seen:
            seen.add(asked.path)
            return Answer(WHOLE[: int(asked.path.split("/")[2])], is_cut=True)
        cursor = asked.headers.get("last-event-id")
        return Answer(RETRY + b"".join(LOG[int(cursor.split("-")[1]) if cursor else 0 :]))

    async with FakeGateway(answer) as gateway:
        for length in range(0, len(WHOLE), 7):
            assert [event.sequence for event in await follow(gateway.url, str(length))] == [1, 2, 3, 4]


async def test_gap_event_restarts_the_log(follow: Follow) -> None:
    gap = b'event: gap\ndata: {"requested":"7-2","earliest":"0-1","latest":"9-2"}\n\n'
    async with FakeGateway.scripted(Answer(RETRY + gap + b"".join(LOG))) as gateway:
        events = await follow(gateway.url, cursor="7-2")

    assert events[0].event == "gap"
    assert [event.sequence for event in events] == [0, 1, 2, 3, 4]


async def test_persistent_sequence_gap_becomes_a_gap_event(follow: Follow) -> None:
    async with FakeGateway(lambda _: Answer(RETRY + b"".join(LOG[1:]))) as gateway:
        events = await follow(gateway.url)

    assert [event.sequence for event in events] == [0, 2, 3, 4]


async def test_list_filters_become_query_parameters() -> None:
    page = Answer(b'{"runs": [], "next": null}', 200, "application/json")
    async with FakeGateway(lambda _: page) as gateway, AsyncStagebus(gateway.url) as bus:
        await bus.runs.list(5, status=["queued", "running"], q="a b", metadata={"user": "4/2"})
        await bus.runs.list(status="parked", model="m", before="01J")

    assert [asked.path for asked in gateway.asked] == [
        "/runs?limit=5&status=queued%2Crunning&q=a+b&metadata.user=4%2F2",
        "/runs?limit=20&before=01J&status=parked&model=m",
    ]


async def test_record_is_waited_for_deleted_and_exported() -> None:
    record = Answer(b'{"id": "01J", "status": "succeeded"}', 200, "application/json")
    async with FakeGateway(lambda _: record) as gateway, AsyncStagebus(gateway.url) as bus:
        created = await bus.runs.create_and_wait(wait_s=7, user_prompt="x")
        await bus.runs.get("01J", wait_s=5)
        await bus.runs.resume("01J").get()

        await bus.runs.resume("01J").delete()

        exported = b"".join([part async for part in bus.runs.resume("01J").export()])

    assert (exported, gateway.asked.pop().path) == (record.body, "/runs/01J/export")
    assert created["status"] == "succeeded"
    assert (gateway.asked[-1].method, gateway.asked.pop().path) == ("DELETE", "/runs/01J")
    assert gateway.asked[0].headers["prefer"] == "wait=7"
    assert [asked.path for asked in gateway.asked] == ["/runs", "/runs/01J?wait=5", "/runs/01J"]
    assert api_requests.get_run("01J", 30).timeout.read == 30 + api_requests.ANSWER_MAX_S


@pytest.mark.parametrize(("status", "kind"), [(422, InvalidRequest), (429, RateLimited)])
async def test_refusal_has_class_code_and_message(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    monkeypatch.setattr(stagebus_client.api_requests, "RETRY_S", 0)
    problem = orjson.dumps({"detail": "do this", "code": "some_code"})
    gateway = FakeGateway(lambda _: Answer(problem, status, "application/problem+json"))
    async with gateway, AsyncStagebus(gateway.url, api_key="k") as bus:
        with pytest.raises(kind, match="do this") as caught:
            await bus.runs.create(user_prompt="x")

    assert caught.value.code == "some_code"
    assert gateway.asked[0].headers["authorization"] == "Bearer k"


async def test_ticket_is_created_and_revoked() -> None:
    links = {"page": "/?run=01J#ticket=t", "events": "/runs/01J/events?ticket=t"}
    made = {"id": "ab", "ticket": "t", "expires_at": "2026-01-31T12:00:00.123Z", "links": links}
    answers = [Answer(orjson.dumps(made), 200, "application/json"), Answer(status=204)]
    async with FakeGateway.scripted(*answers) as gateway, AsyncStagebus(gateway.url) as bus:
        ticket = await bus.runs.resume("01J").ticket(share=True, ttl_s=60)
        await bus.runs.resume("01J").revoke_ticket(ticket.id)

    assert (ticket.text, ticket.page) == ("t", f"{bus.url}/?run=01J#ticket=t")
    assert orjson.loads(gateway.asked[0].body) == {"share": True, "ttl_s": 60}
    assert (gateway.asked[1].method, gateway.asked[1].path) == ("DELETE", "/runs/01J/ticket/ab")


@pytest.mark.parametrize("key", ["sbk_a\nb", "sbk_schön", "sbk_a b"])
def test_malformed_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(BadKey) as caught:
        Stagebus(api_key=key)

    assert "sbk_" not in str(caught.value)
    assert api_requests.client_options(None, "sbk_a\n", None)["headers"] == {"Authorization": "Bearer sbk_a"}


async def test_requests_and_streams_name_the_user_in_utf8() -> None:
    answers = [Answer(b'{"runs": [], "next": null}', 200, "application/json"), Answer(WHOLE)]
    async with FakeGateway.scripted(*answers) as gateway, AsyncStagebus(gateway.url, user="Zoë") as bus:
        await bus.runs.list(1, user="bob")
        async for _ in bus.runs.resume("01J"):
            pass

    assert gateway.asked[0].path == "/runs?limit=1&user=bob"
    assert [asked.headers["stagebus-user"] for asked in gateway.asked] == ["Zoë"] * 2


@pytest.mark.parametrize("user", ["a\nb", "a\x00", "x" * 129])
def test_text_that_is_no_users_name_is_refused(user: str) -> None:
    with pytest.raises(BadUserName):
        Stagebus(user=user)


@pytest.mark.parametrize("link", ["/ai/?run=01J#ticket=t", "/?run=01J#ticket=t"])
def test_ticket_links_below_a_prefix_contain_it_once(link: str) -> None:
    """Holds if the gateway knows its prefix, and if it does not."""
    links = {"page": link, "events": "/ai/runs/01J/events?ticket=t"}
    ticket = parse_ticket("http://h/ai", {"id": "ab", "ticket": "t", "expires_at": "", "links": links})

    assert (ticket.page, ticket.events) == ("http://h/ai/?run=01J#ticket=t", "http://h/ai/runs/01J/events?ticket=t")


async def test_ticket_replaces_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_API_KEY", "sbk_x")
    async with FakeGateway.scripted(Answer(WHOLE)) as gateway, AsyncStagebus(gateway.url, ticket="a b") as bus:
        async for _ in bus.runs.resume("01J"):
            pass

    assert gateway.asked[0].path == "/runs/01J/events?ticket=a+b"
    assert "authorization" not in gateway.asked[0].headers


def test_every_problem_of_the_gateway_has_an_error_class() -> None:
    kinds = {
        problem.code: type(Refused.of(problem.status, {"code": problem.code, "detail": "x"}))
        for problem in problem_types(Urls())
    }

    assert Refused not in kinds.values()
    assert kinds["run_not_found"] is kinds["stage_not_found"] is kinds["approval_not_found"] is NotFound
    assert kinds["invalid_request"] is kinds["bad_cursor"] is kinds["body_too_large"] is InvalidRequest
    assert kinds["idempotency_conflict"] is kinds["approval_conflict"] is kinds["run_ended"] is Conflict
    assert kinds["unauthenticated"] is Unauthenticated
    assert kinds["forbidden"] is kinds["loopback_only"] is kinds["cross_site"] is Forbidden
    assert kinds["rate_limited"] is kinds["too_many_runs"] is kinds["tokens_used_up"] is RateLimited
    assert kinds["storage_full"] is kinds["draining"] is kinds["internal"] is Unavailable


def test_result_of_an_unsuccessful_run_raises() -> None:
    run = {"id": "01J", "status": "succeeded", "result": {"text": "hi"}, "usage": None, "error": None}

    assert parse_result(run).text == "hi"
    assert parse_result(run).finish_reason is None
    assert parse_result(run | {"result": {"text": "hi", "finish_reason": "length"}}).finish_reason == "length"
    assert parse_result(run | {"result": {"text": "[1]", "json": [1]}}).json == [1]
    with pytest.raises(RunCancelled, match="wrong question") as cancelled:
        parse_result(run | {"status": "cancelled", "cancel_reason": "wrong question", "result": {"text": "Half a"}})
    with pytest.raises(RunFailed, match="too long") as failed:
        parse_result(run | {"status": "failed", "result": None, "error": {"error": "too long", "code": "c"}})
    assert (cancelled.value.reason, cancelled.value.text, failed.value.text) == ("wrong question", "Half a", "")


def _chunk(sequence: int, text: str) -> RunEvent:
    delta = {"choices": [{"delta": {"content": text}}]}
    return RunEvent(f"7-{sequence}", "tool_completion_chunk", {"stage_id": "extraction", "tool_results": delta})


def test_run_state_drops_discarded_text() -> None:
    state = RunState()
    started = {"stage_id": "extraction", "attempt": 1}
    for received in (
        RunEvent("7-2", "stage_started", started),
        _chunk(3, "wrong"),
        RunEvent("8-4", "stage_restarted", started | {"discard_from": 3}),
        _chunk(5, "right"),
        RunEvent("8-6", "stage_completed", {"stage_id": "extraction", "result": {}, "duration_ms": 42}),
    ):
        state.apply(received)

    assert state.text == "right"
    assert state.stages["extraction"].duration_ms == 42
    state.apply(RunEvent("", "gap", {"requested": "8-5", "earliest": "0-1", "latest": "0-1"}))
    assert state.stages == {}


def test_run_state_has_the_refusal_and_the_finish_reason() -> None:
    state = RunState()
    delta = {"choices": [{"delta": {"refusal": "I will not."}}]}
    result = {"text": "I will not.", "finish_reason": "refusal"}
    assert state.finish_reason is None
    state.apply(RunEvent("7-2", "tool_completion_chunk", {"stage_id": "extraction", "tool_results": delta}))
    state.apply(RunEvent("7-3", "stage_completed", {"stage_id": "extraction", "result": result}))

    assert (state.text, state.finish_reason) == ("I will not.", "refusal")


def _state_saying(text: str, *ends: str) -> RunState:
    state = RunState()
    state.apply(_chunk(2, text))
    for sequence, end in enumerate(ends, 3):
        state.apply(RunEvent(f"7-{sequence}", end, {"stage_id": "run"}))
    return state


def test_value_of_a_json_answer_grows_with_its_text() -> None:
    answer = '{"name": "Köln", "people": [1087353, true], "river": {"name": "Rhine"}}'

    assert _state_saying("").partial_json() is None
    assert _state_saying("{").partial_json() == {}
    assert _state_saying('{"name": "Kö').partial_json() == {"name": "Kö"}
    assert _state_saying('{"name": "Köln", "peo').partial_json() == {"name": "Köln"}
    assert _state_saying('{"people": [10, tr').partial_json() == {"people": [10]}
    assert _state_saying(f"```json\n{answer}\n``").partial_json() == json.loads(answer)
    assert _state_saying(f"\ufeff```JSON5\r\n{answer}\r\n```\r\n", "done").partial_json() == json.loads(answer)
    assert _state_saying(f"```json {answer}```", "done").partial_json() == json.loads(answer)
    assert _state_saying('{"a": "`').partial_json() == {"a": "`"}
    for end in range(len(answer)):
        _state_saying(answer[:end]).partial_json()


def test_json_answer_that_has_ended_counts_whole_or_not_at_all() -> None:
    assert _state_saying('{"a": 1}', "done").partial_json() == {"a": 1}
    assert _state_saying('{"a": 1', "cancel").partial_json() is None
    assert _state_saying("It is Köln.", "done").partial_json() is None


def test_run_state_is_parked_while_every_open_call_waits() -> None:
    state = RunState()
    call = {"stage_id": "tools", "name": "danger", "arguments": "{}"}

    def status_after(sequence: int, event: str, call_id: str, **data: object) -> str:
        state.apply(RunEvent(f"7-{sequence}", event, call | {"call_id": call_id} | data))
        return state.status

    assert status_after(2, "tool_call", "other") == "running"
    assert status_after(3, "approval_required", "asked") == "running"
    assert status_after(4, "tool_result", "other", content="") == "parked"
    # The decision came before the run had left its worker, so no other attempt begins.
    assert status_after(5, "approval_decided", "asked", decision="approve") == "running"


def test_typed_event_ignores_unknown_fields() -> None:
    received = RunEvent("7-9", "done", {"stage_id": "run", "from_the_future": 1})

    assert received.typed.event == "done"
    assert RunEvent("7-9", "from_the_future", {}).typed is None
