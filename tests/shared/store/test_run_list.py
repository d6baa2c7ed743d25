"""Lists of runs: newest first, in pages, of those that are wanted, and at a bounded cost."""

from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.store import run_list, run_store
from stagebus.shared.store.run_list import RunFilter, list_runs
from tests.support.redis_calls import calls

REQUEST: dict[str, Any] = {"messages": [], "timeout_s": 60}


async def create(redis: Redis, settings: Settings, model: str = "m", prompt: str = "", **metadata: str) -> str:
    request = {**REQUEST, "model": model, "messages": [{"role": "user", "content": prompt}], "metadata": metadata}
    return await run_store.create_run(redis, settings, tenant="t", model=model, request=request)


async def listed(redis: Redis, wanted: RunFilter, limit: int = 100) -> list[str]:
    """Every page's ids."""
    found: list[str] = []
    before = None
    while True:
        page = await list_runs(redis, RunOwner("t"), limit, before, wanted)
        found += [run.run_id for run in page.runs]
        if page.next_id is None:
            return found
        assert before is None or page.next_id < before, "each page goes further back"
        before = page.next_id


async def test_list_is_newest_first_in_pages(redis: Redis, settings: Settings) -> None:
    run_ids = [await create(redis, settings) for _ in range(7)]
    await redis.delete(keys.run(run_ids[3]))
    first = await list_runs(redis, RunOwner("t"), 4)
    second = await list_runs(redis, RunOwner("t"), 4, first.next_id)

    shown = [run.run_id for run in (*first.runs, *second.runs)]
    assert shown == sorted((r for r in run_ids if r != run_ids[3]), reverse=True)
    assert second.next_id is None
    assert (await list_runs(redis, RunOwner("other"), 4)).runs == []


async def test_list_has_only_matching_runs(redis: Redis, settings: Settings) -> None:
    """Every filter alone and together, and never another tenant's."""
    plain = await create(redis, settings)
    greek = await create(redis, settings, "big", "What about Straße 5?", user="Ada Lovelace", team="x")
    both = await create(redis, settings, "extraction=big,synthesis=small", "hi", user="bob")
    other = await run_store.create_run(redis, settings, tenant="other", model="big", request=REQUEST)
    await run_store.cancel_run(redis, settings, both)

    async def found(**wanted: Any) -> set[str]:
        return set(await listed(redis, RunFilter(**wanted)))

    assert await found(statuses=frozenset({RunStatus.QUEUED})) == {plain, greek}
    assert await found(statuses=frozenset({RunStatus.QUEUED, RunStatus.CANCELLED})) == {plain, greek, both}
    assert await found(statuses=frozenset({RunStatus.RUNNING})) == set()
    assert await found(model="big") == {greek, both}
    assert await found(model="small") == await found(model="extraction=big,synthesis=small") == {both}
    assert await found(model="bi") == set()
    assert await found(text="STRASSE") == await found(text="lovelace") == {greek}
    assert await found(text=both.lower()) == {both}
    assert await found(text=both[1:]) == set(), "an id is known by how it begins"
    assert await found(text=other) == set()
    assert await found(metadata={"user": "Ada Lovelace", "team": "x"}) == {greek}
    assert await found(metadata={"user": "ada lovelace"}) == await found(metadata={"none": ""}) == set()
    assert await found(text="a", model="big", metadata={"user": "bob"}) == set()


async def test_search_examines_a_limited_number_of_runs_per_page(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may be short or empty, and its `next` leads on; nothing is missed, nothing comes twice."""
    monkeypatch.setattr(run_list, "EXAMINED_MAX", 4)
    run_ids = [await create(redis, settings, prompt="odd" if n % 7 else "even") for n in range(21)]
    await redis.delete(*(keys.run(run_id) for run_id in run_ids[16:20]))
    newest_first = sorted(run_ids, reverse=True)
    page = await list_runs(redis, RunOwner("t"), 3, wanted=RunFilter(text="nobody"))

    assert (page.runs, page.next_id) == ([], newest_first[3])
    for limit in (1, 2, 3, 100):
        odd = await listed(redis, RunFilter(text="odd"), limit)
        assert odd == [r for r in newest_first if run_ids.index(r) % 7 and run_ids.index(r) not in range(16, 20)]


async def test_search_reads_a_limited_number_of_bytes_per_page(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = [await create(redis, settings, prompt="x" * 1000) for _ in range(5)]
    monkeypatch.setattr(run_list, "READ_MAX_BYTES", 2500)
    page = await list_runs(redis, RunOwner("t"), 100)

    assert len(page.runs) == 2
    assert await listed(redis, run_list.EVERY_RUN) == sorted(run_ids, reverse=True)
    monkeypatch.setattr(run_list, "READ_MAX_BYTES", 1)
    assert await listed(redis, RunFilter(text="x")) == sorted(run_ids, reverse=True), "one at a time is read always"


async def test_search_takes_few_round_trips(redis: Redis, settings: Settings) -> None:
    """Requests are not read if status and model decide; 200 runs whose requests matter take two reads."""
    for n in range(200):
        await run_scripts.create(
            redis, ids.new_run_id(), tenant="t", model="m", request=b'{"n":%d}' % n, event="run_queued",
            data=b"{}", life_s=600,
        )  # fmt: skip
    before, sent = await calls(redis), (await redis.info("stats"))["total_reads_processed"]
    await list_runs(redis, RunOwner("t"), 20, wanted=RunFilter(statuses=frozenset({RunStatus.RUNNING})))
    await list_runs(redis, RunOwner("t"), 20, wanted=RunFilter(text="nobody"))
    used, reads = await calls(redis) - before, (await redis.info("stats"))["total_reads_processed"] - sent

    assert (used["zrevrangebyscore"], used["hgetall"]) == (2, 200)
    assert reads <= 2 * 2 + 2 + 4  # a pipeline of hundreds may come in more than one read


async def test_unfiltered_list_reads_only_its_page(redis: Redis, settings: Settings) -> None:
    """A page that is asked for every few seconds costs what it shows, however many runs there are."""
    for _ in range(40):
        await create(redis, settings)
    before = await calls(redis)
    page = await list_runs(redis, RunOwner("t"), 5)
    after = await calls(redis)

    assert len(page.runs) == 5
    assert after["hmget"] - before["hmget"] == 6
