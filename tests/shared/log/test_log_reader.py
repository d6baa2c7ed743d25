"""Reading the log of a real server: pages of any size, merged or of one stage, and cursors that do not stand."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import RetryScheduled, RunStarted
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.errors import RunNotFound
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import LogGap, Page
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import PipelinedConnection
from tests.support import runs_by_hand, snapshots
from tests.support.runs_by_hand import RunByHand, chunk

STAGES = ["extraction", "tools", "synthesis"]


@pytest.fixture
async def run(redis: Redis) -> AsyncIterator[RunByHand]:
    run = await runs_by_hand.start(redis)
    yield run
    await runs_by_hand.stop(run)


async def write(run: RunByHand) -> list[tuple[EventId, str]]:
    """Events of several stages in turns, journal entries among them; each event's id and stage."""
    stages = [RUN_STAGE, *"eetetssestr"]
    names = {"e": "extraction", "t": "tools", "s": "synthesis", "r": RUN_STAGE}
    events = [
        RetryScheduled(retry_of="tools", retry=1, backoff_s=0.1, reason="x") if s == "r" else chunk(s, names[s])
        for s in stages[1:]
    ]
    made = await run.put(RunStarted(attempt=1, worker="w"), *events)
    written = [(EventId(0, 1), RUN_STAGE), *zip(made, [RUN_STAGE, *(names[s] for s in stages[1:])], strict=True)]
    return [*written, (await run.end(), RUN_STAGE)]


def wanted(written: list[tuple[EventId, str]], stage_id: str | None) -> list[EventId]:
    """Returns the events that a reader of the stage gets; None: of the merged stream."""
    last = written[-1][0]
    return [event_id for event_id, stage in written if stage_id in (None, stage) or event_id == last]


async def read_to_end(
    redis: Redis, run_id: str, limit: int, stage_id: str | None = None, after: EventId = START
) -> list[Page]:
    """Page by page, as every reader does."""
    pages = [await log_reader.read_page(redis, run_id, after, limit, stage_id=stage_id)]
    while not pages[-1].is_last:
        assert pages[-1].position > after, "each page brings its reader on"
        after = pages[-1].position
        pages.append(await log_reader.read_page(redis, run_id, after, limit, stage_id=stage_id))
    return pages


def ids_of(pages: list[Page]) -> list[EventId]:
    return [event.event_id for page in pages for event in page.events]


async def test_pages_of_every_size_give_exactly_the_log(redis: Redis, run: RunByHand) -> None:
    written = await write(run)

    for limit in range(1, len(written) + 2):
        for stage_id in (None, RUN_STAGE, *STAGES):
            pages = await read_to_end(redis, run.run_id, limit, stage_id)
            assert ids_of(pages) == wanted(written, stage_id)
            assert all(len(page.events) <= limit for page in pages)
            assert pages[-1].position == written[-1][0]
            assert all(page.is_ended and page.gap is None for page in pages)


async def test_last_page_says_that_it_is_the_last(redis: Redis, run: RunByHand) -> None:
    """Also where it is just full: a reader that asks again would get an empty one."""
    written = await write(run)

    for limit in range(1, len(written) + 2):
        pages = await read_to_end(redis, run.run_id, limit)
        assert len(pages) == -(-len(written) // limit)


async def test_every_cursor_gives_exactly_the_rest_of_every_stream(redis: Redis, run: RunByHand) -> None:
    """One cursor serves the merged stream and every stage's, since stages share the sequence."""
    written = await write(run)

    for cursor, _ in written:
        for stage_id in (None, *STAGES):
            for limit in (1, 4, 100):
                pages = await read_to_end(redis, run.run_id, limit, stage_id, cursor)
                assert ids_of(pages) == [event_id for event_id in wanted(written, stage_id) if event_id > cursor]


async def test_events_are_as_they_were_put(redis: Redis, run: RunByHand) -> None:
    event = chunk("😊\u2028", "synthesis")
    (event_id,) = await run.put(event)
    page = await log_reader.read_page(redis, run.run_id, EventId(0, 1), 10)

    assert [(e.stage_id, e.event, e.data, e.is_terminal) for e in page.events] == [
        ("synthesis", b"tool_completion_chunk", event.data(), False)
    ]
    assert page.frames() == b"id: %b\nevent: tool_completion_chunk\ndata: %b\n\n" % (
        str(event_id).encode(),
        event.data(),
    )


async def test_run_without_an_end_is_not_ended_and_its_stage_may_be_empty(redis: Redis, run: RunByHand) -> None:
    (last,) = await run.say("a")

    merged = await log_reader.read_page(redis, run.run_id, START, 10)
    assert (merged.is_last, merged.is_ended, merged.position) == (True, False, last)
    empty = await log_reader.read_page(redis, run.run_id, START, 10, stage_id="synthesis")
    assert (empty.events, empty.is_last, empty.position) == ([], True, last)


@pytest.mark.parametrize("stage_id", [None, "synthesis"])
async def test_events_between_two_reads_are_in_the_second(redis: Redis, run: RunByHand, stage_id: str | None) -> None:
    await run.say("a", "b", stage_id="synthesis")
    first = await log_reader.read_page(redis, run.run_id, START, 2, stage_id=stage_id)
    later = await run.say("c", "d", stage_id="synthesis")
    second = await log_reader.read_page(redis, run.run_id, first.position, 100, stage_id=stage_id)

    texts = ids_of([first, second])
    assert texts[-2:] == later
    assert all(a < b for a, b in pairwise(texts))
    assert len(texts) == (5 if stage_id is None else 4)


async def test_page_is_one_snapshot_while_events_are_appended(
    redis: Redis, run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of one stage without an earlier one of another would be a hole."""
    before = [EventId(0, 1), *await run.say("before"), *await run.say("before", stage_id="synthesis")]

    async def go_on() -> None:
        for stage_id in ("synthesis", "extraction", "tools"):
            await run.say("meanwhile", stage_id=stage_id)

    monkeypatch.setattr(log_reader, "read_at_once", _then(log_reader.read_at_once, go_on))
    page = await log_reader.read_page(redis, run.run_id, START, 100)
    known = await log_reader.read_page(redis, run.run_id, before[-1], 100, stage_ids=page.stage_ids)

    for one in (page, known):
        first = 1 if one is page else before[-1].sequence + 1
        assert [event_id.sequence for event_id in ids_of([one])] == list(range(first, one.position.sequence + 1))
    assert ids_of([page])[: len(before)] == before
    assert (await log_reader.read_head(redis, run.run_id)).last_id > known.position > page.position, "it did go on"


def _then(ask: Callable[..., Awaitable[object]], happen: Callable[[], Awaitable[object]]) -> Callable[..., object]:
    async def ask_and_then(*args: object) -> object:
        answer = await ask(*args)
        await happen()
        return answer

    return ask_and_then


@pytest.mark.parametrize("over", ["a connection of the pool", "a line"])
@pytest.mark.parametrize("stage_id", [None, "synthesis"])
async def test_stage_begun_between_two_pages_is_in_the_second(
    redis: Redis, settings: Settings, run: RunByHand, over: str, stage_id: str | None
) -> None:
    """Known stages save a round trip and change nothing else."""
    line = PipelinedConnection(redis, settings.redis_timeout_s)
    way = line if over == "a line" else redis
    await run.say("a")
    first = await log_reader.read_page(way, run.run_id, START, 100, stage_id=stage_id)
    (later,) = await run.say("b", stage_id="synthesis")
    second = await log_reader.read_page(
        way, run.run_id, first.position, 100, stage_id=stage_id, stage_ids=first.stage_ids
    )

    assert first.stage_ids == [RUN_STAGE, "extraction"]
    assert ids_of([second]) == [later]
    with pytest.raises(RunNotFound):
        await log_reader.read_page(way, ids.new_run_id(), START, 10, stage_ids=first.stage_ids)
    await line.aclose()


@pytest.mark.parametrize("stage_id", [None, "synthesis"])
async def test_unknown_cursor_gives_a_gap_and_the_log_from_its_start(
    redis: Redis, run: RunByHand, stage_id: str | None
) -> None:
    written = await write(run)
    attempt, last = written[-1][0]
    strangers = [EventId(attempt, last + 1), EventId(attempt + 1, 3), EventId(attempt - 1, 3), EventId(0, 2)]

    for cursor in [*strangers, EventId(attempt, 1)]:
        page = await log_reader.read_page(redis, run.run_id, cursor, 100, stage_id=stage_id)
        assert page.gap == LogGap(cursor, EventId(0, 1), written[-1][0])
        assert ids_of([page]) == wanted(written, stage_id)


async def test_lost_page_has_its_limit_too(redis: Redis, run: RunByHand) -> None:
    written = await write(run)

    page = await log_reader.read_page(redis, run.run_id, EventId(10**9, 1), 3)
    assert page.gap is not None
    assert ids_of([page]) == [event_id for event_id, _ in written[:3]]
    assert not page.is_last


async def test_log_that_was_trimmed_starts_at_its_earliest_event(redis: Redis, run: RunByHand) -> None:
    written = await write(run)
    await redis.delete(keys.stage_stream(run.run_id, RUN_STAGE))

    page = await log_reader.read_page(redis, run.run_id, EventId(0, 1), 100)
    assert page.gap is not None
    assert page.gap.earliest == written[2][0], "the journal is gone"
    assert ids_of([page])[0] == page.gap.earliest


@pytest.mark.parametrize("stage_id", [None, "extraction"])
async def test_tail_lost_between_two_pages_gives_a_gap(redis: Redis, run: RunByHand, stage_id: str | None) -> None:
    """A worker that takes over writes other events under the sequences that the reader has."""
    await run.say("a")
    older = await snapshots.take(redis)
    await run.say(*"bcdef")
    first = await log_reader.read_page(redis, run.run_id, START, 4, stage_id=stage_id)
    await runs_by_hand.stop(run)
    await snapshots.restore(redis, older)
    run.producer = await runs_by_hand.claim(redis, run.run_id, "w2")
    await run.say(*"BCDEFGH")

    second = await log_reader.read_page(redis, run.run_id, first.position, 100, stage_id=stage_id)

    assert second.gap is not None
    assert second.gap.requested == first.position
    assert [event_id.sequence for event_id in ids_of([second])] == list(range(1 if stage_id is None else 2, 10))


async def test_head_says_where_the_log_ends(redis: Redis, run: RunByHand) -> None:
    assert await log_reader.read_head(redis, run.run_id) == log_reader.Head(
        EventId(0, 1), is_ended=False, stage_ids=[RUN_STAGE]
    )
    await run.begin("extraction")
    end = await run.end()

    assert await log_reader.read_head(redis, run.run_id) == log_reader.Head(
        end, is_ended=True, stage_ids=[RUN_STAGE, "extraction"]
    )


async def test_unknown_run_is_not_found(redis: Redis) -> None:
    with pytest.raises(RunNotFound):
        await log_reader.read_head(redis, ids.new_run_id())
    with pytest.raises(RunNotFound):
        await log_reader.read_page(redis, ids.new_run_id(), START, 10)


async def test_several_ends_at_once(redis: Redis, run: RunByHand) -> None:
    (last,) = await run.say("a")

    assert await log_reader.read_last_ids(redis, [run.run_id, ids.new_run_id(), run.run_id]) == [last, None, last]
    assert await log_reader.read_last_ids(redis, []) == []


@pytest.mark.parametrize("page", [1, 2, 3, 10_000])
async def test_stage_is_read_whole_and_by_its_ends(
    redis: Redis, run: RunByHand, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(log_reader, "STAGE_PAGE_EVENTS", page)
    tools = await run.say("1", "2", "3", stage_id="tools")
    (only,) = await run.say("x", stage_id="synthesis")

    assert [event.event_id for event in await log_reader.read_stage(redis, run.run_id, "tools")] == tools
    assert await log_reader.read_stage(redis, run.run_id, "extraction") == []
    ends = await log_reader.read_stage_ends(redis, run.run_id, ["synthesis", "tools"])
    assert [(first.event_id, last.event_id) for first, last in ends] == [(only, only), (tools[0], tools[-1])]
    assert [first.stage_id for first, _ in ends] == ["synthesis", "tools"]


async def test_stage_that_expires_between_two_reads_has_no_ends(redis: Redis, run: RunByHand) -> None:
    """For example, the run's retention ends."""
    await run.say("a")
    head = await log_reader.read_head(redis, run.run_id)
    await redis.delete(keys.stage_stream(run.run_id, "extraction"))

    assert [first.stage_id for first, _ in await log_reader.read_stage_ends(redis, run.run_id, head.stage_ids)] == [
        "run"
    ]


async def test_ids_are_those_that_redis_shows(redis: Redis, run: RunByHand) -> None:
    """A cursor can be pasted into XRANGE."""
    (event_id,) = await run.say("a")

    raw = await redis.execute_command("XRANGE", keys.stage_stream(run.run_id, "extraction"), str(event_id), "+")
    assert [parse_id(id_.decode()) for id_, _ in raw] == [event_id]
