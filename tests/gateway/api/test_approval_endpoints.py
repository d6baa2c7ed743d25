"""Decisions on pending calls over HTTP, and the pending calls that a run shows."""

from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from stagebus.gateway.api.body import DEPTH_MAX
from stagebus.shared.domain import decisions
from stagebus.shared.domain.decisions import ANSWER_MAX_CHARS, ARGUMENTS_MAX_BYTES, REASON_MAX_CHARS
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    Cancel,
    InputRequired,
    StageStarted,
    ToolResult,
)
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.store import parking
from tests.support.runs_by_hand import RunByHand

EXPIRES_AT = 1769860800123
APPROVE, DENY = {"decision": "approve"}, {"decision": "deny"}
ANSWER = {"decision": "answer", "text": "the blue one"}


@pytest.fixture
async def asking(run: RunByHand) -> RunByHand:
    """A run that waits for an approval and for an answer."""
    await run.put(
        StageStarted(stage_id="tools", attempt=1),
        ApprovalRequired(stage_id="tools", call_id="c/1", name="pay", arguments='{"n": 1}', expires_at=EXPIRES_AT),
        InputRequired(stage_id="tools", call_id="q", question="Which?", expires_at=EXPIRES_AT),
    )
    return run


async def decide(api: httpx.AsyncClient, run_id: str, call_id: str, body: Any) -> httpx.Response:
    return await api.post(f"/runs/{run_id}/approvals/{call_id}", json=body)


async def pending(api: httpx.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    return list((await api.get(f"/runs/{run_id}")).json()["pending_approvals"])


async def test_pending_approvals_are_shown_until_decided(api: httpx.AsyncClient, asking: RunByHand) -> None:
    approval, question = await pending(api, asking.run_id)
    expires_at = "2026-01-31T12:00:00.123Z"
    assert approval == {
        "call_id": "c/1", "name": "pay", "arguments": '{"n": 1}', "question": None, "expires_at": expires_at,
        "url": f"/runs/{asking.run_id}/approvals/c%2F1",
    }  # fmt: skip
    assert question == {
        "call_id": "q", "name": "ask_user", "arguments": None, "question": "Which?", "expires_at": expires_at,
        "url": f"/runs/{asking.run_id}/approvals/q",
    }  # fmt: skip

    assert (await api.post(question["url"], json=ANSWER)).status_code == 202
    assert await pending(api, asking.run_id) == [approval], "no longer, though no worker has carried it out yet"
    await asking.put(ApprovalDecided(stage_id="tools", call_id="c/1", decision="deny", is_expired=True))
    assert await pending(api, asking.run_id) == []


@pytest.mark.parametrize(
    ("call_id", "body", "stored"),
    [
        ("c%2F1", APPROVE, {"decision": "approve"}),
        ("c%2F1", {**APPROVE, "arguments": {"b": [1e3, 2**70], "a": "é"}},
         {"decision": "approve", "arguments": '{"a":"é","b":[1000.0,1180591620717411303424]}'}),
        ("c%2F1", {**DENY, "reason": "too much"}, {"decision": "deny", "reason": "too much"}),
        ("q", ANSWER, ANSWER),
        ("q", DENY, DENY),
    ],
    ids=["approve", "with other arguments", "deny", "answer", "no answer"],
)  # fmt: skip
async def test_decision_is_stored_and_can_be_repeated(
    api: httpx.AsyncClient, redis: Redis, asking: RunByHand, call_id: str, body: Any, stored: dict[str, str]
) -> None:
    answers = [await decide(api, asking.run_id, call_id, body) for _ in range(2)]
    field = await redis.hget(keys.run(asking.run_id), "decisions")

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == asking.run_id
    (decision,) = decisions.decode_all(field).values()
    assert decision.model_dump(exclude_defaults=True) == stored


async def test_second_decision_conflicts_with_the_first(api: httpx.AsyncClient, asking: RunByHand) -> None:
    await decide(api, asking.run_id, "c%2F1", {**APPROVE, "arguments": {"n": 2}})
    for other in (DENY, APPROVE, {**APPROVE, "arguments": {"n": 3}}):
        response = await decide(api, asking.run_id, "c%2F1", other)
        assert (response.status_code, response.json()["code"]) == (409, "approval_conflict")
        assert "it was approved with other arguments" in response.json()["detail"]

    await parking.decide(asking.redis, asking.run_id, "q", decisions.encode(decisions.EXPIRED))
    assert "in time" in (await decide(api, asking.run_id, "q", ANSWER)).json()["detail"]


async def test_decision_on_unknown_call_is_not_found(api: httpx.AsyncClient, asking: RunByHand) -> None:
    await asking.put(ToolResult(stage_id="tools", call_id="other", name="f", content="x"))
    codes = {
        (await decide(api, run_id, call_id, APPROVE)).json()["code"]
        for run_id, call_id in [(asking.run_id, "other"), (asking.run_id, "c"), (asking.run_id, "x" * 999)]
    }

    assert codes == {"approval_not_found"}
    assert (await decide(api, new_run_id(), "c", APPROVE)).json()["code"] == "run_not_found"
    assert (await decide(api, "junk", "c", APPROVE)).status_code == 404


async def test_decision_on_ended_run_is_accepted_only_if_repeated(api: httpx.AsyncClient, asking: RunByHand) -> None:
    await decide(api, asking.run_id, "q", ANSWER)
    asking.producer.put(Cancel(), run_scripts.TerminalState(RunStatus.CANCELLED, retention_s=60))
    await asking.producer.flush()

    assert await pending(api, asking.run_id) == []
    assert (await decide(api, asking.run_id, "q", ANSWER)).status_code == 200
    assert (await decide(api, asking.run_id, "q", DENY)).json()["code"] == "approval_conflict"
    ended = await decide(api, asking.run_id, "c%2F1", APPROVE)
    assert (ended.status_code, ended.json()["code"]) == (409, "run_ended")


def nested(depth: int) -> dict[str, Any]:
    return {"n": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("call_id", "body", "code", "field"),
    [
        ("q", APPROVE, "invalid_request", "decision"),
        ("c%2F1", ANSWER, "invalid_request", "decision"),
        ("c%2F1", {}, "invalid_request", "decision"),
        ("c%2F1", {"decision": "maybe"}, "invalid_request", "decision"),
        ("c%2F1", {**APPROVE, "reason": "x"}, "invalid_request", "reason"),
        ("c%2F1", {**APPROVE, "text": "x"}, "invalid_request", "text"),
        ("c%2F1", {**APPROVE, "arguments": [1]}, "invalid_request", "arguments"),
        ("c%2F1", {**APPROVE, "arguments": "{}"}, "invalid_request", "arguments"),
        ("c%2F1", {**APPROVE, "arguments": {"x": "é" * ARGUMENTS_MAX_BYTES}}, "invalid_request", "arguments"),
        ("c%2F1", {**APPROVE, "arguments": nested(DEPTH_MAX)}, "bad_json", ""),
        ("c%2F1", {**DENY, "arguments": {}}, "invalid_request", "arguments"),
        ("c%2F1", {**DENY, "reason": ""}, "invalid_request", "reason"),
        ("c%2F1", {**DENY, "reason": "x" * (REASON_MAX_CHARS + 1)}, "invalid_request", "reason"),
        ("c%2F1", {**DENY, "who": "me"}, "invalid_request", "who"),
        ("q", {"decision": "answer"}, "invalid_request", "text"),
        ("q", {"decision": "answer", "text": "x" * (ANSWER_MAX_CHARS + 1)}, "invalid_request", "text"),
    ],
)
async def test_invalid_decision_is_rejected_and_not_stored(
    api: httpx.AsyncClient, redis: Redis, asking: RunByHand, call_id: str, body: Any, code: str, field: str
) -> None:
    response = await decide(api, asking.run_id, call_id, body)

    assert response.json()["code"] == code
    assert [error["field"] for error in response.json()["errors"]] == ([field] if field else [])
    assert not await redis.hexists(keys.run(asking.run_id), "decisions")


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
async def test_non_json_number_in_a_decision_is_rejected(
    api: httpx.AsyncClient, asking: RunByHand, number: str
) -> None:
    body = orjson.dumps({**APPROVE, "arguments": {"n": 0}}).replace(b"0", number.encode())
    response = await api.post(f"/runs/{asking.run_id}/approvals/c%2F1", content=body)

    assert response.status_code in (400, 422)
