"""Races over threads: never two active runs, and each accepted run ends exactly once. `make races` runs many more."""

import asyncio
import random

from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.threads import OnActive, ThreadIdentity, ThreadRequest
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.thread_keys import ThreadAdmission, ThreadTimes
from stagebus.shared.thread_errors import ThreadBusy
from tests.support.thread_races import run_races

RACES = 1000
TIMES = ThreadTimes(60, 60)


async def create(connection: PipelinedConnection, identity: ThreadIdentity, on_active: OnActive) -> str | None:
    """Creates a run as a gateway does, and returns its id; None if the thread is busy."""
    run_id = ids.new_run_id_in(identity.tag)
    request = ThreadRequest(identity, [{"role": "user", "content": "hi"}], on_active)
    admission = ThreadAdmission(request, TIMES, run_id)
    try:
        while True:
            created = await run_scripts.create(
                connection, run_id, tenant="t", model="m", request=b"{}", event="run_queued", data=b"{}", life_s=60,
                job=b"{}", thread=admission,
            )  # fmt: skip
            if created.expected is None:
                return run_id
            active, interrupt = created.expected
            admission = ThreadAdmission(request, TIMES, run_id, expected_active=active, expected_interrupt=interrupt)
    except ThreadBusy:
        return None


async def race(redis: Redis, connections: list[PipelinedConnection], number: int) -> None:
    identity, kinds = ThreadIdentity("t", "", str(number)), random.Random(number)
    creating = [create(connections[n % 2], identity, kinds.choice(list(OnActive))) for n in range(3)]
    made = [run_id for run_id in await asyncio.gather(*creating) if run_id]
    thread_key = keys.thread(identity)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hget(thread_key, "active").lrange(keys.thread_line(thread_key), 0, -1).zmscore(keys.QUEUE, made)
        for run_id in made:
            pipe.hget(keys.run(run_id), "cancel")
        active, line, scores, *cancels = await pipe.execute()
    replaced = {run_id for run_id, cancel in zip(made, cancels, strict=True) if cancel} - {active.decode()}

    assert sorted([active.decode(), *map(bytes.decode, line), *replaced]) == sorted(made), "each run has one place"
    due = [run_id for run_id, score in zip(made, scores, strict=True) if score != keys.THROTTLED_SCORE]
    assert due == [active.decode()], "only the active run is due"


async def test_concurrent_posts_never_make_two_runs_active(redis: Redis, settings: Settings) -> None:
    """Three posts of any kind at once to each of a thousand threads, over the connections of two gateways."""
    connections = [PipelinedConnection(redis, settings.redis_timeout_s) for _ in range(2)]
    for start in range(0, RACES, 50):
        await asyncio.gather(*(race(redis, connections, number) for number in range(start, start + 50)))
    for connection in connections:
        await connection.aclose()
    await redis.flushdb()  # the runs never end


async def test_races_end_each_accepted_run_once(redis: Redis, settings: Settings) -> None:
    """Posts of every kind, cancels, deletions and two workers at once."""
    assert await redis.ping()
    outcomes = await run_races(settings.redis_url.get_secret_value(), 50)

    assert all(outcomes[kind] for kind in [*OnActive, "refused", "joined"]), outcomes
