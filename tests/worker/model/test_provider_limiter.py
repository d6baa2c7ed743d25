"""A provider's limits over several workers, on a real server. Each worker is a `ProviderLimiter`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.provider_schema import ProviderEntry
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.store import provider_slots
from stagebus.worker.model import provider_limiter as limiter_module
from stagebus.worker.model.provider_limiter import ProviderLimiter
from tests.support.redis_calls import subscriber_count
from tests.support.waiting import until, until_equal

Worker = Callable[[], ProviderLimiter]


def entry(**limits: int) -> ProviderEntry:
    return ProviderEntry.model_validate({"base_url": "http://127.0.0.1:1/v1", "models": ["*"], **limits})


ONE = entry(concurrency_max=1)
TWO = entry(concurrency_max=2)


@pytest.fixture
async def worker(redis: Redis) -> AsyncIterator[Worker]:
    """Starts workers, which are closed at the end of the test."""
    async with AsyncExitStack() as ends:
        channels = [Channels(redis, lambda: None) for _ in range(2)]
        unused = list(channels)
        for one in channels:
            await one.start()
            ends.push_async_callback(one.stop)
            # A connection whose opening is cancelled stays open.
            await until(lambda one=one: one.is_connected)

        def start() -> ProviderLimiter:
            made = ProviderLimiter(redis, unused.pop())
            ends.push_async_callback(made.aclose)
            return made

        yield start


async def enter(redis: Redis, token: str, held_max: int = 0, minute_max: int = 0, **times: float) -> float | None:
    times = {"waited_s": 0, "slot_s": 10, "seen_s": 5} | times
    return await provider_slots.acquire(redis, "p", token, held_max=held_max, minute_max=minute_max, **times)


async def line(redis: Redis, length: int) -> None:
    """Waits until the queue in Redis has this length."""
    await until_equal(lambda: redis.zcard(keys.provider_slots("p")[1]), length)


async def test_concurrency_limit_holds_over_all_workers(redis: Redis, worker: Worker) -> None:
    inside, most = 0, 0
    workers = [worker(), worker()]

    async def ask(number: int) -> None:
        nonlocal inside, most
        async with workers[number % 2].reserve("p", TWO):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    async with asyncio.timeout(5):
        await asyncio.gather(*(ask(number) for number in range(20)))
    assert most == 2
    assert await redis.keys("sb:provider:*") == [], "released slots leave nothing behind"


async def test_released_slot_wakes_another_worker_before_its_poll(
    redis: Redis, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter_module, "POLL_S", 60.0)
    first, second = worker(), worker()
    async with AsyncExitStack() as other:
        async with first.reserve("p", ONE):
            entering = asyncio.create_task(other.enter_async_context(second.reserve("p", ONE)))
            await line(redis, 1)
            await until(lambda: subscriber_count(redis, keys.provider_freed("p")))
            assert not entering.done()
        await asyncio.wait_for(entering, 5)


async def test_queue_for_slots_is_first_in_first_out(redis: Redis) -> None:
    """The slot goes to the request that waited longest, no matter which one asks first."""
    assert await enter(redis, "held", 1) is None
    assert await enter(redis, "late", 1) == float("inf")
    assert await enter(redis, "early", 1, waited_s=3) == float("inf")
    await provider_slots.release(redis, "p", "held")

    assert await enter(redis, "late", 1) == float("inf")
    assert await enter(redis, "early", 1, waited_s=3) is None


async def test_acquiring_a_slot_twice_is_harmless(redis: Redis) -> None:
    """If the reply was lost, the same token asks again."""
    for _ in range(2):
        assert await enter(redis, "a", 1, 1) is None

    assert await redis.zcard(keys.provider_slots("p")[3]) == 1


async def test_slots_and_places_of_a_killed_worker_expire(redis: Redis) -> None:
    assert await enter(redis, "killed", 1, slot_s=0.05) is None
    assert await enter(redis, "killed in the line", 1, seen_s=0.05) is not None
    await until_equal(lambda: enter(redis, "next", 1), None)


async def test_slot_is_renewed_while_it_is_held(redis, worker, monkeypatch) -> None:
    monkeypatch.setattr(limiter_module, "SLOT_TTL_S", 0.2)
    monkeypatch.setattr(limiter_module, "SLOT_RENEW_S", 0.02)
    held = keys.provider_slots("p")[0]
    async with worker().reserve("p", ONE):
        first_expiry_ms = max(score for _, score in await redis.zrange(held, 0, -1, withscores=True))

        async def is_past_first_expiry() -> bool:
            seconds, microseconds = await redis.time()
            return seconds * 1000 + microseconds / 1000 > first_expiry_ms + 100

        await until(is_past_first_expiry)
        assert await enter(redis, "other", 1) is not None


async def test_requests_per_minute_are_limited(redis: Redis) -> None:
    """The third request waits until the first is a minute old, the fourth until the second is."""
    assert await enter(redis, "1", minute_max=2) is None
    await provider_slots.release(redis, "p", "1")
    assert await enter(redis, "2", minute_max=2) is None
    third, fourth = await enter(redis, "3", minute_max=2), await enter(redis, "4", minute_max=2)
    held, _, _, asked = keys.provider_slots("p")

    assert all(wait_s is not None and 55 < wait_s <= 60.1 for wait_s in (third, fourth))
    await redis.zadd(asked, {"1": 1})
    assert await enter(redis, "4", minute_max=2) is not None, "that place belongs to the third"
    assert await enter(redis, "3", minute_max=2) is None
    assert await redis.zcard(held) == 0, "only a concurrency limit holds slots"


async def test_cancelled_wait_leaves_the_queue(redis: Redis, worker: Worker) -> None:
    impatient = worker()
    async with impatient.reserve("p", ONE):
        entering = asyncio.create_task(AsyncExitStack().enter_async_context(impatient.reserve("p", ONE)))
        await line(redis, 1)
        await cancel_and_wait(entering)

        assert await redis.zcard(keys.provider_slots("p")[1]) == 0


async def scripts_run(redis: Redis) -> int:
    return (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]


async def has_polled(redis: Redis, calls: int) -> bool:
    return await scripts_run(redis) >= calls


async def test_long_queue_in_one_process_costs_one_poll(redis: Redis, worker: Worker, monkeypatch) -> None:
    monkeypatch.setattr(limiter_module, "POLL_S", 0.1)
    one = worker()
    async with one.reserve("p", ONE):
        crowd = [asyncio.create_task(AsyncExitStack().enter_async_context(one.reserve("p", ONE))) for _ in range(50)]
        await line(redis, 1)
        before = await scripts_run(redis)
        since = asyncio.get_running_loop().time()
        await until(lambda: has_polled(redis, before + 5))
        asked = await scripts_run(redis) - before
        polls = (asyncio.get_running_loop().time() - since) / 0.1
        await cancel_and_wait(*crowd)

    assert asked <= polls + 2


async def test_provider_without_limits_costs_nothing(redis: Redis, worker: Worker) -> None:
    async with worker().reserve("p", entry()):
        assert await redis.keys("sb:provider:*") == []


SIXTY = entry(tokens_per_minute_max=60)  # one a second


async def take(redis: Redis, tokens: int, per_minute: int = 60) -> float:
    return await provider_slots.take_tokens(redis, "p", tokens, per_minute)


async def test_tokens_per_minute_are_granted_in_order(redis: Redis) -> None:
    """The tokens of a minute are available immediately. After that each request waits for those before it."""
    assert await take(redis, 40) == 0
    assert await take(redis, 20) == 0
    assert await take(redis, 10) == pytest.approx(10, abs=0.5)
    assert await take(redis, 5) == pytest.approx(15, abs=0.5)
    await take(redis, -10)

    assert await take(redis, 0) == pytest.approx(5, abs=0.5), "returned tokens are available to the next request"
    assert 0 < await redis.pttl(keys.provider_tokens("p")) <= 65_500


async def test_oversized_request_waits_only_for_a_full_token_bucket(redis: Redis) -> None:
    assert await take(redis, 600) == 0
    assert await take(redis, 600) == pytest.approx(600, abs=0.5)
    await take(redis, -1200)

    assert await redis.keys("sb:provider:*") == [], "a full bucket needs no key"


async def test_tokens_are_shared_and_corrected_by_the_usage(redis: Redis, worker: Worker) -> None:
    first, second = worker(), worker()
    async with first.reserve("p", SIXTY, 50) as spending:
        entering = asyncio.create_task(AsyncExitStack().enter_async_context(second.reserve("p", SIXTY, 20)))
        assert not (await asyncio.wait({entering}, timeout=0.2))[0]
        assert await take(redis, 0) == pytest.approx(10, abs=0.5)
        await cancel_and_wait(entering)
        assert await take(redis, 0) == 0, "a cancelled wait takes nothing"
        spending.tokens = 65

    assert await take(redis, 0) == pytest.approx(5, abs=1)


async def test_answer_without_usage_counts_as_estimated(redis: Redis, worker: Worker) -> None:
    with pytest.raises(ConnectionError):
        async with worker().reserve("p", SIXTY, 70):
            raise ConnectionError

    assert await take(redis, 0) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("script", ["release", "take_tokens"])
async def test_slow_release_completes_despite_cancellation(
    redis: Redis, worker: Worker, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    really, asked, goes_on = getattr(provider_slots, script), asyncio.Event(), asyncio.Event()

    async def give_back_slowly(*args: object) -> object:
        asked.set()
        await goes_on.wait()
        return await really(*args)

    async def hold() -> None:
        async with worker().reserve("p", entry(concurrency_max=1, tokens_per_minute_max=60), 60) as spending:
            spending.tokens = 0
            monkeypatch.setattr(provider_slots, script, give_back_slowly)
            held.set()
            await asyncio.Event().wait()

    held = asyncio.Event()
    holding = asyncio.create_task(hold())
    await asyncio.wait_for(held.wait(), 5)
    await cancel_and_wait(holding)  # cancels repeatedly until the task ends
    await asyncio.wait_for(asked.wait(), 5)
    goes_on.set()
    monkeypatch.setattr(provider_slots, script, really)

    await until_equal(lambda: redis.exists(keys.provider_slots("p")[0], keys.provider_tokens("p")), 0)
