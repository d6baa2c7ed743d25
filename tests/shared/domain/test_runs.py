"""A run's states and its record."""

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.runs import ROUNDS_MAX, STAGE_IDS, TERMINAL, TRANSITIONS, RunStatus, decode_run, round_stage
from stagebus.shared.storage import keys, run_scripts

FULL = {
    b"status": b"failed",
    b"attempt": b"5204",
    b"tries": b"2",
    b"last_id": b"5204-118",
    b"tenant": b"public",
    b"model": b"m",
    b"request": b'{"model":"m"}',
    b"created_at": b"1735689600000",
    b"started_at": b"1735689600001",
    b"finished_at": b"1735689600002",
    b"worker": "wörker:1".encode(),
    b"cancel": b"1",
    b"error": b'{"error":"x","code":"internal"}',
    b"usage": b'{"total_tokens":3}',
}


def test_states_that_end_a_run_lead_nowhere() -> None:
    assert {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED} == TERMINAL
    assert all(not TRANSITIONS[status] for status in TERMINAL)


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    reached = {RunStatus.QUEUED}
    while (further := reached.union(*(TRANSITIONS[status] for status in reached))) != reached:
        reached = further

    assert set(TRANSITIONS) == reached == set(RunStatus)


def test_run_never_ends_unclaimed_or_returns_to_queued() -> None:
    assert TRANSITIONS[RunStatus.QUEUED] == {RunStatus.RUNNING}
    assert not any(RunStatus.QUEUED in nexts for nexts in TRANSITIONS.values())


def test_stages_of_later_rounds_have_numbers() -> None:
    assert [round_stage("extraction", number) for number in (1, 2)] == ["extraction", "extraction.2"]
    assert {"run", "extraction", "tools", "synthesis", "extraction.2", f"tools.{ROUNDS_MAX}"} <= STAGE_IDS
    assert {"", "extraction.1", "synthesis.2", "run.2", f"tools.{ROUNDS_MAX + 1}"} & STAGE_IDS == set()


def test_full_record_is_read() -> None:
    run = decode_run("R", FULL)

    assert run is not None
    assert (run.run_id, run.status, run.attempt, run.tries) == ("R", RunStatus.FAILED, 5204, 2)
    assert (run.last_id, run.tenant, run.model, run.request) == (EventId(5204, 118), "public", "m", {"model": "m"})
    assert (run.created_at, run.started_at, run.finished_at) == (1735689600000, 1735689600001, 1735689600002)
    assert (run.worker, run.cancel, run.is_terminal) == ("wörker:1", True, True)
    assert (run.error, run.usage) == ({"error": "x", "code": "internal"}, {"total_tokens": 3})


def test_no_fields_are_no_run() -> None:
    assert decode_run("R", {}) is None
    assert decode_run("R", {b"cancel": b"1"}) is None, "what somebody wrote into a record that was gone"


def test_fields_that_are_not_there_yet_are_empty() -> None:
    run = decode_run("R", {b"status": b"queued"})

    assert run is not None
    assert (run.attempt, run.tries, run.created_at, run.started_at, run.finished_at) == (0, 0, 0, 0, 0)
    assert (run.last_id, run.request, run.worker, run.error, run.usage) == (START, {}, "", None, None)
    assert not run.cancel
    assert not run.is_terminal


@pytest.mark.parametrize("field", ["error", "usage", "cancel", "started_at", "finished_at", "request"])
def test_empty_field_is_as_good_as_none(field: str) -> None:
    """The end of a run writes an empty `error` where it succeeded."""
    assert decode_run("R", {**FULL, field.encode(): b""}) == decode_run(
        "R", {name: value for name, value in FULL.items() if name != field.encode()}
    )


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, RunStatus.RUNNING),
        ({b"finished_at": b"5"}, RunStatus.SUCCEEDED),
        ({b"finished_at": b"5", b"error": b'{"code":"x"}'}, RunStatus.FAILED),
    ],
)
def test_state_of_a_newer_version_is_the_nearest_that_there_is(fields: dict[bytes, bytes], status: RunStatus) -> None:
    run = decode_run("R", {b"status": b"resting", **fields})

    assert run is not None
    assert run.status is status


async def test_record_is_read_as_the_scripts_write_it(redis: Redis) -> None:
    run_id = ids.new_run_id()
    created = await run_scripts.create(
        redis, run_id, tenant="t", model="m", request=b'{"a":1}', event="run_queued", data=b"{}", life_s=60
    )
    queued = decode_run(run_id, await redis.hgetall(keys.run(run_id)))
    claimed = await run_scripts.claim(redis, run_id, "w")
    await run_scripts.cancel(redis, run_id)
    running = decode_run(run_id, await redis.hgetall(keys.run(run_id)))

    assert queued is not None
    assert running is not None
    assert claimed is not None
    assert (queued.status, queued.attempt, queued.last_id) == (RunStatus.QUEUED, 0, EventId(0, 1))
    assert (queued.tenant, queued.model, queued.request, queued.worker) == ("t", "m", {"a": 1}, "")
    assert (queued.created_at, queued.started_at, queued.cancel) == (created.created_at, 0, False)
    assert (running.status, running.attempt, running.worker) == (RunStatus.RUNNING, claimed.attempt, "w")
    assert (running.started_at, running.cancel) == (claimed.now, True)
