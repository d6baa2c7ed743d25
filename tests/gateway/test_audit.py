"""The audit log, and the request's trace in the run's record."""

import json
import logging
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.observability.logging import JsonFormatter
from stagebus.shared.store import run_store
from tests.gateway.conftest import ClientOf

HELLO = {"user_prompt": "What is my password?"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in caplog.text.splitlines())
    return [line for line in lines if line["logger"] == "stagebus.audit"]


async def test_audit_logs_each_change_with_subject_tenant_run_and_request(
    client_of: ClientOf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO, "stagebus.audit")
    mine = await client_of("acme")
    run_id = (await mine.post("/runs", json=HELLO, headers={"X-Request-ID": "one"})).json()["id"]
    await mine.post(f"/runs/{run_id}/ticket", headers={"X-Request-ID": "two"})
    await mine.post(f"/runs/{run_id}/cancel", headers={"X-Request-ID": "three"})
    await mine.get(f"/runs/{run_id}")
    await mine.delete(f"/runs/{run_id}", headers={"X-Request-ID": "four"})
    other = await client_of("umbrella")
    await other.post(f"/runs/{run_id}/cancel")
    await other.delete(f"/runs/{run_id}")
    await other.post("/runs", json={})
    lines = audited(caplog)
    subject = (await mine.get("/session")).json()["subject"]

    assert [(line["message"], line["request_id"]) for line in lines] == [
        ("run.create", "one"), ("ticket.create", "two"), ("run.cancel", "three"), ("run.delete", "four"),
    ]  # fmt: skip
    assert {(line["subject"], line["tenant"], line["run"]) for line in lines} == {(subject, "acme", run_id)}
    assert "password" not in caplog.text


async def test_request_trace_is_stored_in_the_run_record(api: httpx.AsyncClient, redis: Redis) -> None:
    created = await api.post("/runs", json=HELLO, headers={"X-Request-ID": "mine", "traceparent": PARENT})
    other = await api.post("/runs", json=HELLO, headers={"X-Request-ID": "two words", "traceparent": "x"})
    run = await run_store.get_run(redis, created.json()["id"])
    made = await run_store.get_run(redis, other.json()["id"])

    assert run.trace.headers() == {"X-Request-ID": "mine", "traceparent": PARENT}
    assert made.trace.headers() == {"X-Request-ID": other.headers["x-request-id"]}
