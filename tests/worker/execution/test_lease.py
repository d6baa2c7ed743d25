"""The lease keeper against a real server: renewals, lost leases, and its stop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest
import redis as blocking_redis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import StageCompleted, StageStarted
from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.queue_scripts import Renewal
from stagebus.worker.execution import lease
from stagebus.worker.execution.lease import HeldLease, LeaseKeeper
from tests.support import runs_by_hand
from tests.support.attempt_recorder import AttemptRecorder
from tests.support.proxy import Proxy
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

LEASE_S = 0.6
Keep = Callable[..., LeaseKeeper]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": LEASE_S})


class Holder(AttemptRecorder):
    """A worker that holds one run, and the reports that it got about its lease."""

    def __init__(self, run: RunByHand, token: str, attempt: int) -> None:
        super().__init__()
        self.run = run
        self.held = HeldLease(run.run_id, token, attempt, self)

    @property
    def key(self) -> str:
        return keys.lease(self.run.run_id)


async def hold(redis: Redis, run: RunByHand, token: str = "mine") -> Holder:
    """Queues the run and acquires its lease."""
    await queue_scripts.requeue(redis, run.run_id, b"{}")
    assert await queue_scripts.acquire(redis, run.run_id, token, LEASE_S)
    # The claim counts the milliseconds since the run was created, so on a busy machine it is not attempt 1.
    return Holder(run, token, int(await redis.hget(keys.run(run.run_id), "attempt")))


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    run = await runs_by_hand.start(redis)
    yield run
    await runs_by_hand.stop(run)


@pytest.fixture
async def holder(redis: Redis, run: RunByHand) -> Holder:
    return await hold(redis, run)


@pytest.fixture
async def keep(settings: Settings) -> AsyncIterator[Keep]:
    """Starts a keeper with settings of its own."""
    keepers: list[LeaseKeeper] = []

    def start(**changed: object) -> LeaseKeeper:
        keepers.append(LeaseKeeper(settings.model_copy(update=changed)))
        keepers[-1].start()
        return keepers[-1]

    yield start
    for keeper in keepers:
        keeper.stop()


@pytest.fixture
async def keeper(keep: Keep) -> LeaseKeeper:
    return keep()


@pytest.fixture
def watch(redis_url: str) -> blocking_redis.Redis:
    """A client for a test that blocks the event loop."""
    return blocking_redis.Redis.from_url(redis_url)


async def test_lease_is_renewed_while_held_and_expires_when_dropped(
    redis: Redis, keeper: LeaseKeeper, holder: Holder
) -> None:
    keeper.hold(holder.held)
    await holder.until(lambda h: len(h.renewals) >= 5)
    assert await redis.get(holder.key) == b"mine"

    keeper.drop(holder.held)
    await until(lambda: _is_gone(redis, holder.key))
    assert holder.losses == 0


async def _is_gone(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def test_lease_renewal_returns_a_cancel_and_the_end_of_the_log(
    redis: Redis, keeper: LeaseKeeper, holder: Holder
) -> None:
    keeper.hold(holder.held)
    (last,) = await holder.run.say("a")
    await holder.until(lambda h: Renewal(cancel=False, last_id=last) in h.renewals)
    await run_scripts.cancel(redis, holder.run.run_id)

    await holder.until(lambda h: h.renewals[-1].cancel)


async def test_lease_is_renewed_while_a_tool_blocks_the_event_loop(
    watch: blocking_redis.Redis, keeper: LeaseKeeper, holder: Holder
) -> None:
    keeper.hold(holder.held)
    busy_until = time.monotonic() + 1.7 * LEASE_S

    while time.monotonic() < busy_until:
        assert watch.get(holder.key) == b"mine"


async def test_lease_expires_while_the_event_loop_is_stuck_and_is_renewed_after(
    redis: Redis, watch: blocking_redis.Redis, keep: Keep, holder: Holder
) -> None:
    keeper = keep(loop_stall_max_s=2 * lease.BEAT_S)
    keeper.hold(holder.held)
    await holder.until(lambda h: bool(h.renewals))
    deadline = time.monotonic() + 10
    while watch.exists(holder.key):
        assert time.monotonic() < deadline, "other workers would wait forever"

    await until(lambda: redis.exists(holder.key))
    assert await redis.get(holder.key) == b"mine"
    assert holder.losses == 0, "no other worker took it"


async def test_lease_of_a_fenced_attempt_is_reported_lost(redis: Redis, keeper: LeaseKeeper, holder: Holder) -> None:
    keeper.hold(holder.held)
    await holder.until(lambda h: bool(h.renewals))
    await run_scripts.claim(redis, holder.run.run_id, "w2")

    await holder.until(lambda h: bool(h.losses))


async def test_lease_that_another_worker_took_stays_its_own(redis: Redis, keeper: LeaseKeeper, holder: Holder) -> None:
    await redis.set(holder.key, "other", px=60_000)
    keeper.hold(holder.held)

    await holder.until(lambda h: bool(h.losses))
    assert await redis.get(holder.key) == b"other"
    assert await redis.pttl(holder.key) > 30_000


async def test_expired_lease_that_no_worker_took_is_acquired_again(
    redis: Redis, keeper: LeaseKeeper, holder: Holder
) -> None:
    keeper.hold(holder.held)
    await holder.until(lambda h: bool(h.renewals))
    await redis.delete(holder.key)

    await until(lambda: redis.exists(holder.key))
    assert await redis.get(holder.key) == b"mine"
    assert holder.losses == 0


async def test_lease_of_an_ended_run_is_not_renewed(redis: Redis, keeper: LeaseKeeper, holder: Holder) -> None:
    await holder.run.end()
    keeper.hold(holder.held)

    await holder.until(lambda h: bool(h.losses))
    assert holder.renewals == []


async def test_renew_now_renews_every_lease(redis: Redis, keep: Keep, holder: Holder) -> None:
    keeper = keep(lease_s=60.0)
    keeper.hold(holder.held)
    await redis.pexpire(holder.key, 5000)
    await asyncio.wait_for(keeper.renew_now(), 5)

    assert await redis.pttl(holder.key) > 30_000


async def test_renew_now_waits_for_redis(redis_url: str, keep: Keep, holder: Holder) -> None:
    async with Proxy(urlsplit(redis_url).port or 0) as proxy:
        keeper = keep(redis_url=Settings(redis_url=f"redis://127.0.0.1:{proxy.port}/0").redis_url)
        keeper.hold(holder.held)
        await holder.until(lambda h: bool(h.renewals))
        await proxy.close()
        renewing = asyncio.create_task(keeper.renew_now())
        done, _ = await asyncio.wait({renewing}, timeout=2 * lease.AWAY_BACKOFF_S)
        assert not done
        assert holder.losses == 0, "no other worker can have taken it"

        await proxy.__aenter__()
        await asyncio.wait_for(renewing, 5)


def running_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


async def test_lease_keeper_stops_promptly_between_renewals(settings: Settings) -> None:
    keeper = LeaseKeeper(settings.model_copy(update={"lease_s": 300.0}))
    keeper.start()
    await asyncio.wait_for(keeper.renew_now(), 5)
    started = time.monotonic()
    keeper.stop()

    assert time.monotonic() - started < 2
    assert "lease-keeper" not in running_threads()


async def test_lease_keeper_stops_right_after_its_start(settings: Settings) -> None:
    for _ in range(10):
        keeper = LeaseKeeper(settings)
        keeper.start()
        keeper.stop()
        assert "lease-keeper" not in running_threads()


async def test_lease_that_cannot_be_renewed_leaves_the_others_alone(
    redis: Redis, keeper: LeaseKeeper, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_CONCURRENCY", 1)
    spoilt = await runs_by_hand.start(redis)
    first = await hold(redis, spoilt)
    real = queue_scripts.renew

    async def renew(redis: Redis, run_id: str, **options: object) -> Renewal | None:
        if run_id == spoilt.run_id:
            raise ResponseError("WRONGTYPE")
        return await real(redis, run_id, **options)

    monkeypatch.setattr(queue_scripts, "renew", renew)
    keeper.hold(first.held)
    keeper.hold(holder.held)

    await holder.until(lambda h: len(h.renewals) >= 3)
    keeper.drop(first.held)
    await runs_by_hand.stop(spoilt)


async def test_lease_renewal_after_the_release_has_no_effect(redis: Redis, holder: Holder) -> None:
    """It was sent before the run was given back. The next worker must not wait for a lease that no worker holds."""
    held = holder.held
    assert await queue_scripts.release(redis, held.run_id, token=held.token, attempt=held.attempt)

    renewed = await queue_scripts.renew(redis, held.run_id, token=held.token, attempt=held.attempt, lease_s=LEASE_S)

    assert renewed is None
    assert (await queue_scripts.list_due(redis, 10)).run_ids == [held.run_id]
    assert await queue_scripts.acquire(redis, held.run_id, "next", LEASE_S)


async def test_lease_renewal_overtaken_by_an_append_is_no_lost_tail(
    redis: Redis, keeper: LeaseKeeper, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply is older than what the producer knows; a complete stage could not be sent again."""
    main = asyncio.get_running_loop()
    answered, overtaken = asyncio.Event(), asyncio.Event()
    real = queue_scripts.renew

    async def renew(*args: object, **options: object) -> Renewal | None:
        renewed = await real(*args, **options)
        main.call_soon_threadsafe(answered.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(overtaken.wait(), main))
        return renewed

    monkeypatch.setattr(queue_scripts, "renew", renew)
    monkeypatch.setattr(holder, "on_renewed", lambda r, at: holder.run.producer.check_log_end(r.last_id, at))
    monkeypatch.setattr(holder.run.producer, "_listener", holder)
    keeper.hold(holder.held)
    await asyncio.wait_for(answered.wait(), 5)
    await holder.run.put(StageStarted(stage_id="tools", attempt=1), StageCompleted(stage_id="tools", result={}))
    overtaken.set()
    await asyncio.wait_for(keeper.renew_now(), 5)

    assert holder.failures == []
    await holder.run.say("the next stage")


async def test_partition_that_is_away_keeps_no_other_lease_from_being_renewed(
    keep: Keep, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, other, renewed = ids.new_run_id_in(TAGS[0]), ids.new_run_id_in(TAGS[1]), list[str]()

    async def renew(_connection: object, run_id: str, **_: object) -> Renewal:
        if run_id == away:
            raise RedisConnectionError("its node is away")
        renewed.append(run_id)
        return Renewal(cancel=False, last_id=EventId(1, 1))

    monkeypatch.setattr(queue_scripts, "renew", renew)
    keeper = keep(partitioned=True)
    for run_id in (away, other):
        keeper.hold(HeldLease(run_id, "token", 1, holder))

    await until(lambda: len(renewed) > 2)
    await asyncio.wait_for(keeper.renew_now(lambda run_id: run_id == other), 5)
    renewing = asyncio.create_task(keeper.renew_now())
    done, _ = await asyncio.wait({renewing}, timeout=2 * lease.AWAY_BACKOFF_S)
    assert not done, "it waits for all leases, one of which cannot be renewed"
    await cancel_and_wait(renewing)
