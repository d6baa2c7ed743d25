"""Tenant limits: counted over all gateways, reported in headers, and never an error for a stream."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.context import Gateway
from stagebus.gateway.tenant_limiter import TenantLimiter
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.limits import TenantLimits
from stagebus.shared.log import sse
from stagebus.shared.storage import keys
from stagebus.shared.store import quotas
from stagebus.shared.store.quotas import StreamsVerdict
from tests.gateway.conftest import ClientOf, client
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
async def other_limiter(redis: Redis, settings: Settings) -> AsyncIterator[TenantLimiter]:
    """The limiter of another gateway."""
    limiter = TenantLimiter(redis, settings.tenant_limits)
    await limiter.start()
    yield limiter
    await limiter.stop()


async def test_rate_limit_allows_a_burst_of_one_second(redis: Redis) -> None:
    counted = [await quotas.count_request(redis, "t", 5) for _ in range(8)]

    assert [quota.is_allowed for quota in counted if quota].count(True) in (5, 6), (
        "the bucket refills while requests are counted"
    )
    assert counted[0] == quotas.Quota(
        is_allowed=True, limit=5, window_s=1, remaining=4, reset_in_s=pytest.approx(0.2, abs=0.01), retry_after_s=0
    )
    assert counted[-1]
    assert 0 < counted[-1].retry_after_s <= 0.2
    assert 0 < await redis.pttl(keys.rate("t")) <= 1001


@pytest.mark.parametrize("per_s", [0.05, 1, 2.5, 1000])
async def test_rate_limit_is_full_again_after_its_window(redis: Redis, per_s: float) -> None:
    """The stored time is moved back instead of waiting for the window."""
    quota = await quotas.count_request(redis, "t", per_s)
    assert quota
    while (last := await quotas.count_request(redis, "t", per_s)) and last.is_allowed:
        pass
    full = int(await redis.get(keys.rate("t")))
    await redis.set(keys.rate("t"), full - quota.window_s * 1_000_000)

    again = await quotas.count_request(redis, "t", per_s)
    assert again
    assert (again.is_allowed, again.limit) == (True, max(1, int(per_s)))
    assert again.remaining >= quota.remaining - 1


async def test_rate_limit_headers_report_the_quota_and_retry_after(api: httpx.AsyncClient, redis: Redis) -> None:
    await redis.hset(keys.LIMITS, "default:requests_per_s", 0.1)
    first, second = await api.get("/runs"), await api.get("/runs")

    assert (first.status_code, second.status_code) == (200, 429)
    assert (first.headers["ratelimit-policy"], first.headers["ratelimit"]) == (
        '"requests";q=1;w=10',
        '"requests";r=0;t=10',
    )
    assert second.headers["ratelimit-policy"] == first.headers["ratelimit-policy"]
    assert second.json()["code"] == "rate_limited"
    assert 9 <= int(second.headers["retry-after"]) <= 10
    assert (await api.get("/healthz")).status_code == 200, "public endpoints are not counted"


async def test_rate_limit_headers_are_absent_without_a_limit(api: httpx.AsyncClient) -> None:
    assert "ratelimit" not in (await api.get("/runs")).headers


async def test_rate_limit_is_counted_per_tenant(client_of: ClientOf, redis: Redis) -> None:
    await redis.hset(keys.LIMITS, mapping={"a:requests_per_s": 0.1, "b:requests_per_s": 0.1})
    a, b = await client_of("a"), await client_of("b")
    statuses = [(await api.get("/runs")).status_code for api in (a, a, b, b)]

    assert statuses == [200, 429, 200, 429]


async def test_ticket_s_holder_has_its_own_rate_and_uses_up_nobody_else_s(
    client_of: ClientOf, locked_app: Starlette, redis: Redis
) -> None:
    await redis.hset(keys.LIMITS, mapping={"a:requests_per_s": 5, "a:ticket_requests_per_s": 0.1})
    mine = await client_of("a")
    run_id = (await mine.post("/runs", json={"user_prompt": "Hello"})).json()["id"]
    first, second = [(await mine.post(f"/runs/{run_id}/ticket", json={"share": True})).json() for _ in range(2)]
    async with client(locked_app) as guest:
        answers = [
            await guest.get(f"/runs/{run_id}", params={"ticket": made["ticket"]}) for made in [first] * 3 + [second] * 2
        ]

    assert [answer.status_code for answer in answers] == [200, 429, 429, 200, 429]
    assert answers[1].json()["detail"].startswith("this ticket is used for more requests")
    assert (await mine.get(f"/runs/{run_id}")).status_code == 200
    assert 0 < await redis.pttl(keys.rate("a", first["id"])) <= 10_000


async def test_rate_limited_stream_ends_with_a_retry_time(api: httpx.AsyncClient, redis: Redis, run: RunByHand) -> None:
    """A browser's EventSource gives up for good at any status but 200."""
    await redis.hset(keys.LIMITS, "default:requests_per_s", 0.1)
    await api.get("/runs")
    response = await api.get(f"/runs/{run.run_id}/events", headers=STREAM)
    page = await api.get(f"/runs/{run.run_id}/events", headers={"Accept": "application/json"})

    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert 8000 < int(response.text.removeprefix("retry: ")) <= 10_000
    assert page.status_code == 429


async def test_rate_limit_costs_one_round_trip_per_request(
    api: httpx.AsyncClient, client_of: ClientOf, redis: Redis
) -> None:
    """A tenant without a limit costs none. The key is cached after the first request."""
    mine = await client_of("mine")
    await redis.hset(keys.LIMITS, "mine:requests_per_s", 1000)
    for caller, expected in ((api, 0), (mine, 1)):
        await caller.get("/models")
        before = await scripts_run(redis)
        for _ in range(10):
            assert (await caller.get("/models")).status_code == 200

        assert await scripts_run(redis) - before == 10 * expected


async def scripts_run(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    calls = Counter({name.removeprefix("cmdstat_"): int(value["calls"]) for name, value in stats.items()})
    return calls["evalsha"] + calls["eval"] + calls["hgetall"]


async def test_limits_are_not_enforced_while_redis_is_away(nowhere: Redis) -> None:
    limiter = TenantLimiter(nowhere, TenantLimits(requests_per_s=1, streams_open=1))

    assert await limiter.count_request("t") is None
    assert [await limiter.begin_stream("t"), await limiter.begin_stream("t")] == [True, True]


async def test_stream_limit_counts_the_streams_of_all_gateways(redis: Redis) -> None:
    mine, other_limiter = (TenantLimiter(redis, TenantLimits(streams_open=2)) for _ in range(2))
    assert [await mine.begin_stream("t"), await other_limiter.begin_stream("t"), await mine.begin_stream("t")] == [
        True,
        True,
        False,
    ]
    await other_limiter.end_stream("t")
    assert [await mine.begin_stream("t"), await mine.begin_stream("other")] == [True, True]
    for tenant in ("t", "t", "other"):
        await mine.end_stream(tenant)

    assert await redis.exists(keys.streams("t"), keys.streams("other")) == 0


async def test_stream_limit_drops_the_streams_of_a_dead_gateway(redis: Redis) -> None:
    async def report(gateway: str, count: int, *, is_new: bool = True) -> StreamsVerdict:
        return await quotas.report_streams(redis, "t", gateway, count, 1, is_new=is_new)

    assert [await report("dead", 1), await report("mine", 1)] == [StreamsVerdict.OK, StreamsVerdict.REFUSED]
    until = int((await redis.hget(keys.streams("t"), "dead")).split()[1])
    assert 0 < await redis.pttl(keys.streams("t")) <= quotas.GATEWAY_TTL_MS
    await redis.hset(keys.streams("t"), "dead", f"1 {until - quotas.GATEWAY_TTL_MS - 1}")

    assert await report("mine", 1) is StreamsVerdict.OK
    assert await report("mine", 0, is_new=False) is StreamsVerdict.OK
    assert await redis.hlen(keys.streams("t")) == 0


@pytest.mark.parametrize("limited", ["tenant", "process"])
async def test_stream_over_the_stream_limit_ends_with_a_retry_time(
    app: Starlette, api: httpx.AsyncClient, redis: Redis, settings: Settings, run: RunByHand, limited: str
) -> None:
    gateway: Gateway = app.state.gateway
    if limited == "tenant":
        await redis.hset(keys.LIMITS, "default:streams_open", 1)
        assert await quotas.report_streams(redis, "default", "other", 1, 0, is_new=True) is StreamsVerdict.OK
    else:
        gateway.hub.open_streams += settings.streams_max
    full = await api.get(f"/runs/{run.run_id}/events", headers=STREAM)
    gateway.hub.open_streams = 0
    await redis.delete(keys.streams("default"))
    await run.end()
    free = await api.get(f"/runs/{run.run_id}/events", headers=STREAM)

    assert (full.status_code, full.text) == (200, "retry: 5000\n\n")
    assert [frame.event for frame in sse.decode(free.content)] == ["run_queued", "done"]


async def test_created_run_is_named_though_its_stream_is_over_the_limit(api: httpx.AsyncClient, redis: Redis) -> None:
    await redis.hset(keys.LIMITS, "default:streams_open", 1)
    await quotas.report_streams(redis, "default", "other", 1, 0, is_new=True)
    response = await api.post("/runs", json={"user_prompt": "Hello"}, headers=STREAM)

    assert (response.status_code, response.text) == (200, "retry: 5000\n\n")
    assert (await api.get(response.headers["location"])).json()["id"] == response.headers["x-run-id"]


async def test_stream_counts_are_reported_periodically(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagebus.gateway.tenant_limiter.GATEWAY_TTL_MS", 30)
    limiter = TenantLimiter(redis, TenantLimits(streams_open=5))
    await limiter.start()
    await limiter.begin_stream("t")
    await redis.delete(keys.streams("t"))
    await until(lambda: redis.exists(keys.streams("t")))
    await limiter.stop()


async def test_default_rate_limit_comes_from_the_settings(redis: Redis, settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"tenant_requests_per_s": 0.5}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        assert [(await client.get("/models")).status_code for _ in range(2)] == [200, 429]


async def test_failed_stream_report_is_repeated(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagebus.gateway.tenant_limiter.GATEWAY_TTL_MS", 30)
    limiter, reports = TenantLimiter(redis, settings.tenant_limits), asyncio.Queue[str]()
    await limiter.begin_stream("t")

    async def fail(tenant: str) -> None:
        reports.put_nowait(tenant)
        raise ValueError("an unreadable field")

    monkeypatch.setattr(limiter, "_report", fail)
    await limiter.start()
    async with asyncio.timeout(5):
        assert [await reports.get() for _ in range(2)] == ["t", "t"]
    await limiter.stop()
