"""Runs that requests in other protocols create."""

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.shared.store import run_store

HELLO = {"role": "user", "content": "Hello"}
RESPONSE = ("/v1/responses", {"input": "Hello", "background": True})


async def request_of(http: httpx.AsyncClient, redis: Redis, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the stored request of the run that the POST creates."""
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return (await run_store.get_run(redis, response.headers["x-run-id"])).request


async def test_options_of_stagebus_win_over_the_protocol_s_own(http: httpx.AsyncClient, redis: Redis) -> None:
    options = {"max_rounds": 3, "synthesis": False, "metadata": {"a": "2"}, "max_tokens": [5, None], "model": None}
    path, body = RESPONSE
    stored = await request_of(
        http,
        redis,
        path,
        {**body, "model": "demo:x", "metadata": {"a": "1"}, "max_output_tokens": 9, "stagebus": options},
    )

    assert (stored["max_rounds"], stored["synthesis"], stored["metadata"]) == (3, False, {"a": "2"})
    assert stored["max_tokens"] == [5, None]
    assert stored["model"] == "demo:x", "null is no option"


async def test_unknown_keys_of_messages_are_dropped(http: httpx.AsyncClient, redis: Redis) -> None:
    path, body = RESPONSE
    content = [{"type": "input_text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]
    item = {"type": "message", "id": "msg_1", "role": "user", "status": "completed", "content": content, "phase": "x"}
    stored = await request_of(http, redis, path, {**body, "input": [item], "truncation": "auto"})

    assert stored["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


async def test_same_run_in_two_protocols_is_one_under_one_key(http: httpx.AsyncClient, redis: Redis) -> None:
    """The key stands for the run that a request means, not for its words."""
    key = {"Idempotency-Key": "k"}
    made = await http.post("/runs", json={"messages": [HELLO]}, headers=key)
    path, body = RESPONSE
    found = await http.post(path, json=body, headers=key)

    assert found.json()["id"] == f"resp_{made.json()['id']}"


@pytest.mark.parametrize("options", [7, [], {"colour": "red"}, {"messages": [HELLO]}, {"timeout_s": 10**9}])
async def test_bad_options_are_named(http: httpx.AsyncClient, options: Any) -> None:
    path, body = RESPONSE
    response = await http.post(path, json={**body, "stagebus": options})

    assert (response.status_code, response.json()["error"]["param"]) == (400, "stagebus")
