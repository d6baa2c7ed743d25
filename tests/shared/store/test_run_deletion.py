"""Deletion of runs in every state, and in a race with everything else that writes."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Done
from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import Fenced, RunDeleted, RunEnded, RunNotFound
from stagebus.shared.storage import keys, queue_scripts, redis_client, run_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import parking, run_queue, run_store, sweep
from stagebus.shared.store.parking import Seen
from stagebus.shared.store.run_deletion import TOMBSTONE_TTL_S, delete_run

TENANT = "acme"
OWNER = RunOwner(TENANT)
TOKENS = 700
SETS = (keys.ACTIVE, keys.active_of_tenant(TENANT), keys.runs(TENANT), keys.QUEUE, keys.RUNNING, keys.THROTTLED)


async def create(redis: Redis, settings: Settings, key: str = "k", **body: Any) -> str:
    return await run_store.create_run(
        redis, settings, tenant=TENANT, model="m", request={"p": "secret", **body}, idempotency_key=key, tokens=TOKENS
    )


async def held(redis: Redis, settings: Settings) -> run_scripts.Claim:
    """Acquires and claims the only run, as a worker does."""
    run_id = (await redis.zrange(keys.ACTIVE, 0, -1))[0].decode()
    assert await queue_scripts.acquire(redis, run_id, "token", settings.lease_s)
    claim = await run_scripts.claim(redis, run_id, "w", token="token")
    assert claim is not None
    return claim


async def append(redis: Redis, run_id: str, claim: run_scripts.Claim) -> None:
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=claim.last_id, message=b"x", tokens=40,
        entries=[LogEntry("extraction", "stage_started", b"{}", b'{"item":1}')],
    )  # fmt: skip


async def rest_of(redis: Redis, run_id: str) -> dict[str, int]:
    """Returns the keys that name the run or belong to its client's key, with their TTLs in s; checks all sets."""
    for name in SETS:
        assert run_id.encode() not in b" ".join(await redis.zrange(name, 0, -1)), name
    found = [key.decode() for key in await redis.keys("*") if run_id.encode() in key or b"idempotency" in key]
    return {key: await redis.ttl(key) for key in found}


async def be_queued(_redis: Redis, _settings: Settings, _run_id: str) -> None:
    pass


async def be_running(redis: Redis, settings: Settings, run_id: str) -> None:
    await append(redis, run_id, await held(redis, settings))


async def be_parked(redis: Redis, settings: Settings, run_id: str) -> None:
    claim = await held(redis, settings)
    await append(redis, run_id, claim)
    assert await parking.park(redis, run_id, token="token", attempt=claim.attempt, due_ms=10**13, seen=Seen())


async def be_throttled(redis: Redis, settings: Settings, run_id: str) -> None:
    await redis.zadd(keys.RUNNING, {f"{TENANT} another": 0})
    assert not await queue_scripts.acquire(redis, run_id, "token", settings.lease_s, running_max=1)
    await redis.zrem(keys.RUNNING, f"{TENANT} another")
    assert await redis.zcard(keys.THROTTLED) == 1


async def be_ended(redis: Redis, settings: Settings, run_id: str) -> None:
    await run_store.cancel_run(redis, settings, run_id)


async def be_ended_and_not_accounted(redis: Redis, settings: Settings, run_id: str) -> None:
    claim = await held(redis, settings)
    await append(redis, run_id, claim)
    await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=EventId(claim.attempt, 2), message=b"x",
        entries=[LogEntry("run", "done", b"{}")], end=run_store.terminal_state_of(Done(), settings),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("begin", "used"),
    [(be_queued, 0), (be_running, 40), (be_parked, 40), (be_throttled, 0), (be_ended, 0),
     (be_ended_and_not_accounted, 40)],
)  # fmt: skip
async def test_nothing_is_left_of_a_run_but_its_tombstone(
    redis: Redis,
    settings: Settings,
    begin: Callable[[Redis, Settings, str], Awaitable[None]],
    used: int,
) -> None:
    run_id = await create(redis, settings)
    await begin(redis, settings, run_id)
    await delete_run(redis, settings, run_id, OWNER)
    await delete_run(redis, settings, run_id, OWNER)

    idempotency = keys.idempotency(TENANT, "k")
    left = await rest_of(redis, run_id)
    assert set(left) == {keys.run(run_id), idempotency}
    assert all(TOMBSTONE_TTL_S - 5 <= ttl <= TOMBSTONE_TTL_S for ttl in left.values())
    assert set(await redis.hgetall(keys.run(run_id))) == {b"deleted_of", b"deleted_at"}
    tokens = await redis.hgetall(keys.tokens(TENANT))
    assert (int(tokens[b"reserved"]), int(tokens.get(b"used", 0))) == (0, used), "tokens that were used stay counted"
    assert not await redis.exists(keys.RESERVED)
    assert int(await redis.hget(keys.TOTALS, "runs_cancelled") or 0) + int(
        await redis.hget(keys.TOTALS, "runs_succeeded") or 0
    ) == 1, "a run counts once"  # fmt: skip


async def test_deleted_run_leaves_the_list_of_its_user(redis: Redis, settings: Settings) -> None:
    run_id, kept = [
        await run_store.create_run(redis, settings, tenant=TENANT, user="ada", model="m", request={}) for _ in range(2)
    ]
    await delete_run(redis, settings, run_id, OWNER)

    assert await redis.zrange(keys.runs(TENANT, "ada"), 0, -1) == [kept.encode()]


async def test_deletion_is_for_the_runs_of_the_tenant(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)

    for tenant, name in (("umbrella", run_id), (TENANT, new_run_id())):
        with pytest.raises(RunNotFound):
            await delete_run(redis, settings, name, RunOwner(tenant))
    assert (await run_store.get_run(redis, run_id)).status == "queued"
    await delete_run(redis, settings, run_id, OWNER)
    with pytest.raises(RunNotFound):
        await delete_run(redis, settings, run_id, RunOwner("umbrella"))
    with pytest.raises(RunNotFound):
        await run_store.get_run(redis, run_id, OWNER)


async def test_worker_of_a_deleted_run_writes_nothing(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    claim = await held(redis, settings)
    async with aclosing(redis.pubsub()) as control:
        await control.subscribe(keys.control(run_id))
        await control.get_message(timeout=5)
        await delete_run(redis, settings, run_id, OWNER)
        message = await control.get_message(timeout=5)
    left = await rest_of(redis, run_id)

    assert message is not None, "the worker is told at once"
    with pytest.raises(RunEnded):
        await append(redis, run_id, claim)
    with pytest.raises(RunEnded):
        await run_scripts.claim(redis, run_id, "w", token="token")
    with pytest.raises(RunEnded):
        await parking.decide(redis, run_id, "c", "{}")
    reserve = queue_scripts.reserve(
        redis, run_id, tenant=TENANT, attempt=claim.attempt, wanted=10**6, tokens_per_day=0, life_s=600
    )
    with pytest.raises(RunEnded):
        await reserve
    for refused in (
        queue_scripts.renew(redis, run_id, token="token", attempt=claim.attempt, lease_s=9),
        parking.park(redis, run_id, token="token", attempt=claim.attempt, due_ms=10**13, seen=Seen()),
        queue_scripts.acquire(redis, run_id, "token", settings.lease_s),
        queue_scripts.finish(redis, run_id, "token"),
        run_queue.requeue(redis, run_id),
    ):
        assert not await refused
    await queue_scripts.release(redis, run_id, token="token", attempt=None)
    await run_store.finalize(redis, settings, run_id)
    await sweep.sweep(redis, settings)
    assert await rest_of(redis, run_id) == left


async def test_repeated_creation_does_not_make_a_deleted_run_again(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    await delete_run(redis, settings, run_id, OWNER)

    with pytest.raises(RunDeleted):
        await create(redis, settings)
    assert await create(redis, settings, "other key") != run_id
    # An hour later; both keys expire at the same moment.
    assert await redis.expiretime(keys.run(run_id)) == await redis.expiretime(keys.idempotency(TENANT, "k"))
    await redis.delete(keys.run(run_id), keys.idempotency(TENANT, "k"))
    assert await create(redis, settings) != run_id
    with pytest.raises(RunNotFound):
        await delete_run(redis, settings, run_id, OWNER)


async def test_deletion_races_with_everything_that_writes(redis: Redis, settings: Settings) -> None:
    """200 runs, each deleted twice while a worker, a canceller and clients that repeat the creation write to it."""
    other = redis_client.connect(settings)
    rng = random.Random(5)
    outcomes: Counter[str] = Counter()

    async def attempt(name: str, step: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(rng.randrange(12)):  # starts the steps at different times, in units of a round trip
            await redis.ping()
        try:
            await step()
            outcomes[name] += 1
        except (RunEnded, Fenced, RunNotFound, RunDeleted) as exc:
            outcomes[f"{name} {type(exc).__name__}"] += 1

    async def work(run_id: str) -> None:
        if not await queue_scripts.acquire(other, run_id, f"token {run_id}", 60):
            return
        claim = await run_scripts.claim(other, run_id, "w", token=f"token {run_id}")
        assert claim is not None
        await append(other, run_id, claim)
        await queue_scripts.renew(other, run_id, token=f"token {run_id}", attempt=claim.attempt, lease_s=60)
        before = EventId(claim.attempt, claim.last_id.sequence + 1)
        end = run_store.terminal_state_of(Done(), settings)
        entries = [LogEntry("run", "done", b"{}")]
        await run_scripts.append(
            other, run_id, attempt=claim.attempt, before=before, message=b"x", entries=entries, end=end
        )
        await run_store.finalize(other, settings, run_id)
        await queue_scripts.finish(other, run_id, f"token {run_id}")

    async def race(number: int) -> str:
        run_id = await create(redis, settings, str(number), number=number)
        await asyncio.gather(
            attempt("work", lambda: work(run_id)),
            attempt("cancel", lambda: run_store.cancel_run(other, settings, run_id, OWNER)),
            attempt("create", lambda: create(other, settings, str(number), number=number)),
            attempt("delete", lambda: delete_run(redis, settings, run_id, OWNER)),
            attempt("delete", lambda: delete_run(other, settings, run_id, OWNER)),
        )
        return run_id

    run_ids: list[str] = []
    for start in range(0, 200, 20):
        run_ids += await asyncio.gather(*(race(start + number) for number in range(20)))
    await redis_client.close(other)
    await sweep.sweep(redis, settings)

    assert outcomes["delete"] == 400
    seen = set(outcomes)
    assert seen >= {
        "work",
        "work Fenced",
        "work RunEnded",
        "cancel",
        "cancel RunNotFound",
        "create",
        "create RunDeleted",
    }
    for name in (*SETS, keys.RESERVED):
        assert not await redis.exists(name), name
    left = {key.decode() for key in await redis.keys("*") if b"sb:run:" in key or b"arq:" in key}
    assert left == {keys.run(run_id) for run_id in run_ids}
    assert {frozenset(await redis.hkeys(key)) for key in left} == {frozenset((b"deleted_of", b"deleted_at"))}
    assert await redis.hget(keys.tokens(TENANT), "reserved") == b"0"
