"""Access control over the whole API: every operation with and without a key and its scope.

Whose runs an operation shows is tested in tests/gateway/test_access_matrix.py.
"""

import httpx
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.api.guard import Guarded
from stagebus.gateway.app import create_app
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.tenants import INCLUDED_IN, TENANT_WIDE, Scope
from stagebus.shared.log import sse
from stagebus.shared.storage import keys
from tests.gateway.conftest import SECRET, ClientOf, client
from tests.support.redis_calls import calls

HELLO = {"user_prompt": "Hello"}
GUARDS = [(endpoint.path_template, endpoint.method, endpoint.guard) for endpoint in ENDPOINTS]
GUARDED = [(path, method, guard) for path, method, guard in GUARDS if not guard.is_public]


def url(path: str, run_id: str) -> str:
    names = {
        "stage_id": "extraction",
        "call_id": "c",
        "ticket_id": "0" * 32,
        "chat_id": run_id,
        "thread_id": "chat",
        "delivery_id": "d",
    }
    return path.format(run_id=run_id, **names)


def code_of(response: httpx.Response) -> str:
    """Returns the error's code, in the format of the operation."""
    body = response.json()
    return body.get("error", body)["code"]


def test_public_endpoints_are_those_without_tenant_data() -> None:
    assert {endpoint.name for endpoint in ENDPOINTS if endpoint.guard.is_public} == {
        "get_health", "get_ready", "get_event_schema", "get_openapi", "get_problem_type", "get_page", "get_docs",
        "get_static", "end_session",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "method", "guard"), GUARDED, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_operation_requires_authentication_and_its_scope(
    locked_app: Starlette, client_of: ClientOf, path: str, method: str, guard: Guarded
) -> None:
    """These checks come first, so that not even the existence of a run shows."""
    target = url(path, new_run_id())
    async with client(locked_app) as stranger:
        unknown = await stranger.request(method, target)
        wrong = await stranger.request(
            method, target, headers={"Authorization": "Bearer sbk_" + "0" * 12 + "_" + "a" * 43}
        )
    weak = await client_of("acme", *(TENANT_WIDE - {guard.scope, INCLUDED_IN.get(guard.scope)}))
    refused = await weak.request(method, target)

    assert (unknown.status_code, code_of(unknown)) == (401, "unauthenticated")
    assert unknown.headers["www-authenticate"] == 'Bearer realm="stagebus"'
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (
        401,
        'Bearer realm="stagebus", error="invalid_token"',
    )
    if guard.scope is not None:
        assert (refused.status_code, code_of(refused)) == (403, "forbidden")
        assert f'scope="{guard.scope}"' in refused.headers["www-authenticate"]
        assert guard.scope in refused.text


async def test_metrics_may_be_opened_for_scrapers_without_a_key(redis: Redis, settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"auth": "keys", "secret": SecretStr(SECRET), "metrics_open": True}))
    async with app.router.lifespan_context(app), client(app) as stranger:
        answered = {path: (await stranger.get(path)).status_code for path in ("/metrics", "/stats", "/healthz")}

    assert answered == {"/metrics": 200, "/stats": 401, "/healthz": 200}


async def test_stream_of_a_run_of_another_tenant_is_not_found(client_of: ClientOf) -> None:
    mine, other = await client_of("acme"), await client_of("umbrella")
    run_id = (await mine.post("/runs", json=HELLO)).json()["id"]
    await mine.post(f"/runs/{run_id}/cancel")
    foreign = await other.get(f"/runs/{run_id}/events")

    assert (foreign.status_code, foreign.json()["code"]) == (404, "run_not_found")
    assert [frame.event for frame in sse.decode((await mine.get(f"/runs/{run_id}/events")).content)] == [
        "run_queued",
        "cancel",
    ]


async def test_run_lists_and_idempotency_keys_are_per_tenant(client_of: ClientOf) -> None:
    mine, other = await client_of("acme"), await client_of("umbrella")
    again = {"Idempotency-Key": "k"}
    first = (await mine.post("/runs", json=HELLO, headers=again)).json()["id"]
    second = (await other.post("/runs", json={"user_prompt": "Bye"}, headers=again)).json()["id"]

    assert [run["id"] for run in (await mine.get("/runs")).json()["runs"]] == [first]
    assert [run["id"] for run in (await other.get("/runs")).json()["runs"]] == [second]


async def test_create_scope_alone_does_not_allow_the_stream(client_of: ClientOf, redis: Redis) -> None:
    writer = await client_of("acme", Scope.RUNS_WRITE)
    response = await writer.post("/runs", json=HELLO, headers={"Accept": "text/event-stream"})

    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert await redis.zcard(keys.ACTIVE) == 0


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Basic eDp5", "Bearer  ", "sbk_x", "Bearer " + "x" * 9000, "Bearer x y"]
)
async def test_malformed_authorization_header_is_refused(locked_app: Starlette, header: str) -> None:
    async with client(locked_app) as stranger:
        response = await stranger.get("/runs", headers={"Authorization": header})

    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert "x" * 100 not in response.text


async def test_redis_away_gives_503_or_a_stream_with_a_retry_time(
    locked_app: Starlette, client_of: ClientOf, nowhere: Redis
) -> None:
    """A browser's EventSource gives up for good at any error status."""
    mine = await client_of("acme")
    locked_app.state.gateway.auth.authenticator._api_keys._redis = nowhere
    page = await mine.get(f"/runs/{new_run_id()}/events", headers={"Accept": "application/json"})
    stream = await mine.get(f"/runs/{new_run_id()}/events")

    assert (page.status_code, page.json()["code"]) == (503, "storage_unavailable")
    assert stream.status_code == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.text == "retry: 1000\n\n"


async def test_authentication_costs_at_most_one_redis_lookup(client_of: ClientOf, redis: Redis) -> None:
    """Only the first request looks the key up. Its last use is written once a minute."""
    mine = await client_of("acme")
    before = await calls(redis)
    for _ in range(10):
        assert (await mine.get("/session")).status_code == 200
    used = await calls(redis) - before

    assert used["hgetall"] == 1
    assert used["zadd"] <= 1
    assert used["get"] == used["hmget"] == used["exists"] == 0
