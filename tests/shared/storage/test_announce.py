"""The scripts write what happens to a run to its tenant's feed and to the outbox."""

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Done
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import RunEnded
from stagebus.shared.log import live_batch
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import parking, run_deletion, run_store
from stagebus.shared.store.sweep import sweep
from tests.support.threads_by_hand import ENQUEUE, ThreadByHand
from tests.support.waiting import until

LATER_MS = 10**13
HOOK = "https://hooks.example/run"


async def create(redis: Redis, settings: Settings, webhook_url: str | None = None) -> str:
    request: dict[str, Any] = {"timeout_s": 60, **({"webhook_url": webhook_url} if webhook_url else {})}
    return await run_store.create_run(redis, settings, tenant="t", model="m", request=request)


async def append(
    redis: Redis, run_id: str, claim: run_scripts.Claim, before: EventId, *names: str, **more: Any
) -> EventId:
    entries = [LogEntry("run", name, json.dumps({"call_id": "c1"}).encode()) for name in names]
    appended = await run_scripts.append(
        redis, run_id, attempt=claim.attempt, before=before, entries=entries, message=b"", tenant="t", **more
    )
    return appended.last_id


async def end(redis: Redis, settings: Settings, run_id: str, claim: run_scripts.Claim, before: EventId) -> EventId:
    return await append(
        redis, run_id, claim, before, "done", end=run_store.terminal_state_of(Done(), settings), stage_ids=["run"]
    )


async def claim_run(redis: Redis, run_id: str) -> run_scripts.Claim:
    claim = await run_scripts.claim(redis, run_id, "w")
    assert claim is not None
    return claim


async def feed(redis: Redis) -> list[tuple[str, dict[str, Any]]]:
    return [(event.decode(), json.loads(data)) for _, (_, event, _, data) in await redis.xrange(keys.feed("t"))]


async def outbox(redis: Redis) -> list[dict[str, str]]:
    entries = [[part.decode() for part in fields] for _, fields in await redis.xrange(keys.outbox())]
    return [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in entries]


async def test_feed_tells_the_life_of_a_run_in_order(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    claim = await claim_run(redis, run_id)
    last = await append(redis, run_id, claim, claim.last_id, "run_started", "stage_started")
    await parking.park(redis, run_id, token="", attempt=claim.attempt, due_ms=LATER_MS, seen=parking.Seen(), tenant="t")
    claim = await claim_run(redis, run_id)
    last = await append(redis, run_id, claim, last, "run_started")
    last = await end(redis, settings, run_id, claim, last)
    await run_deletion.delete_run(redis, settings, run_id, RunOwner("t"))

    told = await feed(redis)

    assert [(event, data["status"]) for event, data in told] == [
        ("run_created", "queued"), ("run_started", "running"), ("run_waiting", "parked"), ("run_started", "running"),
        ("run_ended", "succeeded"), ("run_deleted", "deleted"),
    ]  # fmt: skip
    assert {data["run_id"] for _, data in told} == {run_id}
    assert told[4][1]["event_id"] == str(last)
    assert 0 < await redis.ttl(keys.feed("t")) <= 86400


async def test_feed_ids_are_cursors_and_grow(redis: Redis, settings: Settings) -> None:
    """Several entries of one millisecond, or of a clock that went back, get further numbers."""
    far = 4 * 10**12
    await redis.xadd(keys.feed("t"), {"event": "run_created", "data": "{}"}, id=f"{far}-7")
    await create(redis, settings)
    await create(redis, settings)

    assert [entry_id for entry_id, _ in await redis.xrange(keys.feed("t"))] == [
        f"{far}-7".encode(), f"{far}-8".encode(), f"{far}-9".encode(),
    ]  # fmt: skip


async def test_feed_entries_are_published_as_live_batches(redis: Redis, settings: Settings) -> None:
    messages: list[bytes] = []
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.feed("t"))
        await create(redis, settings)
        await create(redis, settings)

        async def received() -> bool:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message:
                messages.append(message["data"])
            return len(messages) == 2

        await until(received)

    first, second = map(live_batch.decode, messages)
    assert first.before == EventId(0, 0)
    assert second.before == first.last
    (event,) = second.events()
    stored = (await redis.xrange(keys.feed("t")))[-1]
    assert event == (stored[0], b"run_created", stored[1][3])


async def test_nothing_is_told_where_nobody_listens(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings)
    claim = await claim_run(redis, run_id)
    await end(redis, settings, run_id, claim, claim.last_id)

    assert not await redis.exists(keys.outbox(), keys.outbox_bell())


@pytest.mark.parametrize("who", ["webhook_url", "creator", "claimer"])
async def test_outbox_is_written_for_a_run_that_anybody_listens_to(redis: Redis, settings: Settings, who: str) -> None:
    """The run has a webhook, or a process that created or claimed it has webhooks configured."""
    listening = settings.model_copy(update={"webhooks": "hooks.toml"})
    run_id = await create(redis, listening if who == "creator" else settings, HOOK if who == "webhook_url" else None)
    claim = await run_scripts.claim(redis, run_id, "w", has_webhooks=who == "claimer")
    assert claim is not None
    last = await end(redis, settings, run_id, claim, claim.last_id)

    (entry,) = await outbox(redis)

    data = json.loads(entry.pop("data"))
    assert entry == {
        "message": f"{run_id}_{claim.attempt}_{last.sequence}_run.ended", "type": "run.ended", "tenant": "t",
        "webhook_url": HOOK if who == "webhook_url" else "",
    }  # fmt: skip
    assert (data["run_id"], data["status"], data["event_id"]) == (run_id, "succeeded", str(last))
    assert await redis.llen(keys.outbox_bell()) == 1


async def test_a_failed_run_is_told_with_its_code(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings, HOOK)
    claim = await claim_run(redis, run_id)
    state = run_scripts.TerminalState(run_store.RunStatus.FAILED, 60, b'{"error": "no", "code": "model_error"}')
    await append(redis, run_id, claim, claim.last_id, "error", end=state, stage_ids=["run"])

    (entry,) = await outbox(redis)
    assert json.loads(entry["data"])["code"] == "model_error"
    assert (await feed(redis))[-1][1]["code"] == "model_error"


async def test_a_repeated_batch_tells_once(redis: Redis, settings: Settings) -> None:
    """The whole batch is repeated, or it is repeated with a further event."""
    run_id = await create(redis, settings, HOOK)
    claim = await claim_run(redis, run_id)
    for names in (["run_started", "call_deferred"],) * 2 + (["run_started", "call_deferred", "stage_started"],):
        last = await append(redis, run_id, claim, claim.last_id, *names)

    for _ in range(2):
        await end(redis, settings, run_id, claim, last)
    with pytest.raises(RunEnded):
        await end(redis, settings, run_id, claim, EventId(claim.attempt, last.sequence + 1))

    assert [event for event, _ in await feed(redis)] == ["run_created", "run_started", "run_ended"]
    assert [entry["type"] for entry in await outbox(redis)] == ["call.deferred", "run.ended"]
    assert json.loads((await outbox(redis))[0]["data"])["call_id"] == "c1"


async def test_a_repeated_park_tells_once(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings, HOOK)
    claim = await claim_run(redis, run_id)
    for _ in range(2):
        assert await parking.park(
            redis, run_id, token="", attempt=claim.attempt, due_ms=LATER_MS, seen=parking.Seen(), tenant="t"
        )

    (entry,) = await outbox(redis)
    assert entry["message"] == f"{run_id}_{claim.attempt}_1_run.waiting"
    assert [event for event, _ in await feed(redis)] == ["run_created", "run_waiting"]


async def test_a_run_that_is_due_at_once_does_not_wait(redis: Redis, settings: Settings) -> None:
    """A decision came while the worker parked the run."""
    run_id = await create(redis, settings, HOOK)
    claim = await claim_run(redis, run_id)
    await parking.decide(redis, run_id, "c1", "{}")
    assert await parking.park(
        redis, run_id, token="", attempt=claim.attempt, due_ms=LATER_MS, seen=parking.Seen(), tenant="t"
    )

    assert await outbox(redis) == []
    assert [event for event, _ in await feed(redis)] == ["run_created"]


async def test_damaged_keys_keep_no_run_from_its_end(redis: Redis, settings: Settings) -> None:
    run_id = await create(redis, settings, HOOK)
    claim = await claim_run(redis, run_id)
    for key in (keys.feed("t"), keys.outbox(), keys.outbox_bell()):
        await redis.delete(key)
        await redis.set(key, "damaged")
    await end(redis, settings, run_id, claim, claim.last_id)

    assert (await run_store.get_run(redis, run_id)).is_terminal
    assert len(await outbox(redis)) == 1


@pytest.mark.parametrize("listens", [True, False])
@pytest.mark.parametrize("who", ["sweep", "create"])
async def test_a_run_that_redis_lost_is_told_once_as_lost(
    redis: Redis, settings: Settings, who: str, listens: bool
) -> None:
    """Its thread knows whose it is; its own webhook_url is lost with it. A run that waited is told, too."""
    thread = ThreadByHand(redis, settings.model_copy(update={"webhooks": "hooks.toml" if listens else None}))
    lost = [await thread.post(on_active=ENQUEUE) for _ in range(2)]
    await redis.delete(*(keys.run(run_id) for run_id in lost))
    await redis.zrem(keys.ACTIVE, *lost)
    for _ in range(2):
        if who == "sweep":
            await sweep(redis, thread.settings)
        else:
            await thread.post(on_active=ENQUEUE)

    told = [data for event, data in await feed(redis) if event == "run_ended"]
    assert [(data["run_id"], data["status"]) for data in told] == [(run_id, "lost") for run_id in lost]
    assert {(data["thread_id"], data["user"]) for data in told} == {("chat-7", "ada")}
    assert [(entry["message"], entry["tenant"], entry["webhook_url"]) for entry in await outbox(redis)] == [
        (f"{run_id}_0_0_run.ended", "t", "") for run_id in lost if listens
    ]
    assert [json.loads(entry["data"]) for entry in await outbox(redis)] == (told if listens else [])
    await thread.end_all()
    await redis.delete(*(key for run_id in lost for key in keys.all_of_run(run_id)))
