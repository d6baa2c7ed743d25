"""The scripts of runs that wait for a person, against a real server."""

from functools import partial

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import decisions, ids
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.events import Cancel
from stagebus.shared.domain.runs import decode_run
from stagebus.shared.errors import RunEnded
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.store import parking
from stagebus.shared.store.parking import Seen
from stagebus.shared.store.run_store import end_unheld
from tests.support import runs_by_hand

APPROVE, DENY = '{"decision":"approve"}', '{"decision":"deny"}'
LATER_MS = 4 * 10**12
NOTHING = Seen()


async def claim(redis: Redis, run_id: str, worker: str = "w1") -> Claim:
    claimed = await run_scripts.claim(redis, run_id, worker)
    assert claimed is not None
    return claimed


async def park(redis: Redis, run_id: str, attempt: int, seen: Seen = NOTHING) -> bool:
    return await parking.park(redis, run_id, token="token", attempt=attempt, due_ms=LATER_MS, seen=seen)


async def is_due(redis: Redis, run_id: str) -> bool:
    return run_id in (await queue_scripts.list_due(redis, 10)).run_ids


@pytest.fixture
async def held(redis: Redis, settings: Settings) -> tuple[str, int]:
    """A run that this worker holds, and its attempt."""
    run_id = await runs_by_hand.queued(redis, settings, {"a": 1})
    attempt = (await claim(redis, run_id)).attempt
    await redis.delete(keys.WAKEUP)
    return run_id, attempt


@pytest.fixture
async def parked(redis: Redis, held: tuple[str, int]) -> str:
    run_id, attempt = held
    assert await park(redis, run_id, attempt)
    return run_id


async def test_parked_run_names_no_worker_and_is_due_when_it_expires(redis: Redis, parked: str) -> None:
    assert await redis.hmget(keys.run(parked), ["status", "worker"]) == [b"parked", b""]
    assert await redis.zscore(keys.QUEUE, parked) == LATER_MS
    assert not await redis.exists(keys.lease(parked), keys.WAKEUP)
    assert (await claim(redis, parked, "w2")).tries == 0, "parking costs no try"
    assert await redis.hget(keys.run(parked), "status") == b"running"


async def test_parked_time_is_summed_up(redis: Redis, parked: str) -> None:
    """A run's time limit is for its work."""
    for waited_ms in (5000, 3000):
        parked_at = int(await redis.hget(keys.run(parked), "parked_at"))
        await redis.hset(keys.run(parked), "parked_at", parked_at - waited_ms)
        await claim(redis, parked)
        assert await park(redis, parked, (await claim(redis, parked)).attempt)

    assert 8000 <= int(await redis.hget(keys.run(parked), "parked_ms")) < 9000


async def test_decision_makes_a_parked_run_due_and_wakes_a_worker(redis: Redis, parked: str) -> None:
    assert await parking.decide(redis, parked, "c1", APPROVE) == APPROVE

    assert await is_due(redis, parked)
    assert await redis.llen(keys.WAKEUP) == 1


async def test_first_decision_stands(redis: Redis, parked: str) -> None:
    """And it is kept byte for byte, past the script's JSON, which knows no numbers but its own."""
    texts = {"c1": '{"arguments":"{\\"a/b\\":[],\\"é\\":1e400}","decision":"approve"}', "2": DENY}
    for call_id, text in texts.items():
        assert await parking.decide(redis, parked, call_id, text) == text
    for call_id, text in texts.items():
        assert await parking.decide(redis, parked, call_id, text) == text, "the same again is fine"
        assert await parking.decide(redis, parked, call_id, '{"decision":"other"}') == text

    run = decode_run(parked, await redis.hgetall(keys.run(parked)))
    assert run is not None
    assert run.decisions == texts


async def test_decision_notifies_the_holding_worker_and_keeps_its_lease(redis: Redis, held: tuple[str, int]) -> None:
    run_id, _ = held
    score = await redis.zscore(keys.QUEUE, run_id)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.control(run_id))
        await pubsub.get_message(timeout=2)
        await parking.decide(redis, run_id, "c1", APPROVE)
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=2)

    assert message is not None
    assert message["data"] == parking.DECIDED_MESSAGE
    assert await redis.zscore(keys.QUEUE, run_id) == score


@pytest.mark.parametrize("comes", ["a decision", "a cancel", "nothing"])
async def test_park_with_an_unseen_decision_makes_the_run_due(redis: Redis, held: tuple[str, int], comes: str) -> None:
    """Between its last read and the park, when it no longer listens."""
    run_id, attempt = held
    await parking.decide(redis, run_id, "c1", DENY)
    news, stored = await redis.hmget(keys.run(run_id), ["news", "decisions"])
    seen = Seen(int(news), len(stored))
    if comes == "a decision":
        await parking.decide(redis, run_id, "c2", APPROVE)
    elif comes == "a cancel":
        await run_scripts.cancel(redis, run_id)
    assert await park(redis, run_id, attempt, seen)

    assert await is_due(redis, run_id) == (comes != "nothing")
    assert await redis.llen(keys.WAKEUP) == (comes != "nothing")


async def test_repeated_park_hides_no_decision(redis: Redis, held: tuple[str, int]) -> None:
    """Its first reply was lost."""
    run_id, attempt = held
    assert await park(redis, run_id, attempt)
    await parking.decide(redis, run_id, "c1", APPROVE)
    assert await park(redis, run_id, attempt)

    assert await is_due(redis, run_id)


async def test_late_worker_cannot_park_a_run_of_another(redis: Redis, held: tuple[str, int]) -> None:
    run_id, attempt = held
    await claim(redis, run_id, "w2")

    assert not await park(redis, run_id, attempt)
    assert await redis.hmget(keys.run(run_id), ["status", "worker"]) == [b"running", b"w2"]


async def test_ended_run_takes_no_decision_and_keeps_those_that_it_has(
    redis: Redis, settings: Settings, parked: str
) -> None:
    await parking.decide(redis, parked, "c1", APPROVE)
    assert await end_unheld(redis, settings, parked, Cancel())

    assert await parking.decide(redis, parked, "c1", APPROVE) == APPROVE
    with pytest.raises(RunEnded):
        await parking.decide(redis, parked, "c2", APPROVE)
    assert await is_due(redis, parked), "so that its job goes now, and not when its approvals expire"


def test_decisions_are_encoded_one_way() -> None:
    decision = decisions.Decision(decision="approve", arguments='{"é":1}')

    assert decisions.encode(decision) == '{"arguments":"{\\"é\\":1}","decision":"approve"}'
    assert decisions.decode(decisions.encode(decision)) == decision
    assert decisions.decode('{"decision":"approve","arguments":"{\\"é\\":1}","from_the_future":1}') == decision
    assert decisions.decode_all(None) == {}


# --- results -----------------------------------------------------------------

REF = "5-2"


async def test_first_result_counts_and_wakes_the_parked_run(redis: Redis, parked: str) -> None:
    first, second = CallResult(content="é" * 10), CallResult(content="no", is_error=True)
    assert await parking.deliver(redis, parked, REF, "c/1", first) == first
    assert await parking.deliver(redis, parked, REF, "c/1", first) == first, "the same again is fine"
    assert await parking.deliver(redis, parked, REF, "c/1", second) == first
    assert await parking.deliver(redis, parked, "9-2", "c/1", second) == second, "another answer's call of the same id"

    assert await is_due(redis, parked)
    assert await redis.llen(keys.WAKEUP) >= 1


async def test_park_with_an_unseen_result_makes_the_run_due(redis: Redis, held: tuple[str, int]) -> None:
    run_id, attempt = held
    await parking.deliver(redis, run_id, REF, "c1", CallResult(content="x"))
    assert await park(redis, run_id, attempt)

    assert await is_due(redis, run_id)


async def test_park_sees_a_decision_that_an_older_gateway_stored_without_a_number(
    redis: Redis, held: tuple[str, int]
) -> None:
    run_id, attempt = held
    await redis.hset(keys.run(run_id), "decisions", '{"c1":"{}"}')
    assert await park(redis, run_id, attempt)

    assert await is_due(redis, run_id)


async def test_number_of_a_change_is_not_used_again_after_a_lost_tail(redis: Redis, held: tuple[str, int]) -> None:
    """A counter would count to the same number, and the park would miss the second result."""
    run_id, attempt = held
    await redis.hincrby(keys.run(run_id), "created_at", -1000)
    await parking.deliver(redis, run_id, REF, "lost", CallResult(content="x"))
    seen = Seen(int(await redis.hget(keys.run(run_id), "news")))
    await redis.hdel(keys.run(run_id), "news")  # lost with the tail
    await redis.delete(keys.results(run_id))
    await redis.hincrby(keys.run(run_id), "created_at", -1000)  # time goes on
    await parking.deliver(redis, run_id, REF, "c1", CallResult(content="y"))
    assert await park(redis, run_id, attempt, seen)

    assert await is_due(redis, run_id)


async def test_repeated_park_leaves_the_run_as_it_is(redis: Redis, parked: str, held: tuple[str, int]) -> None:
    parked_at = await redis.hget(keys.run(parked), "parked_at")
    await redis.zadd(keys.QUEUE, {parked: LATER_MS - 5})
    assert await park(redis, *held)

    assert await redis.hget(keys.run(parked), "parked_at") == parked_at
    assert await redis.zscore(keys.QUEUE, parked) == LATER_MS - 5


async def test_parked_run_is_due_when_the_first_claim_on_a_call_that_runs_once_ends(redis: Redis, parked: str) -> None:
    lease = partial(parking.lease_call, redis, parked, REF, holder="a tab", is_once=True)
    first = await lease("c1")
    await redis.hset(keys.results(parked), f"lease {REF} c1", f"{first - 9000} 1 a tab")  # a while ago
    await lease("c2")
    assert await redis.zscore(keys.QUEUE, parked) == first - 9000, "not only when the last one does"

    await parking.deliver(redis, parked, REF, "c1", CallResult(content="x"))
    await redis.zadd(keys.QUEUE, {parked: LATER_MS})
    assert await redis.zscore(keys.QUEUE, parked) == LATER_MS
    assert await lease("c2") == await redis.zscore(keys.QUEUE, parked)


async def test_ended_or_deleted_run_takes_no_result(redis: Redis, settings: Settings, parked: str) -> None:
    assert await end_unheld(redis, settings, parked, Cancel())
    for run_id in (parked, ids.new_run_id()):
        with pytest.raises(RunEnded):
            await parking.deliver(redis, run_id, REF, "c1", CallResult(content="x"))
        with pytest.raises(RunEnded):
            await parking.lease_call(redis, run_id, REF, "c1", holder="a tab", is_once=False)
    assert not await redis.exists(keys.results(parked))
