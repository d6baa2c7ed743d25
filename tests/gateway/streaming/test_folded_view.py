"""Folds behind the hub, with a real Redis server: shared by a run's clients, and folded again for those behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.gateway.streaming import folded_view
from stagebus.gateway.streaming.fold import END, Fold, FoldSource, Json, RunFacts, encode_data
from stagebus.gateway.streaming.fold_log import find_voided, fold_log
from stagebus.gateway.streaming.folded_view import FoldedView, Folds, Voided
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.model_pieces import pieces_of
from stagebus.gateway.streaming.stream_writer import StreamTorn
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import StageCompleted, StageRestarted, ToolCompletionChunk
from stagebus.shared.domain.tenants import DEFAULT_TENANT, RunOwner
from stagebus.shared.log.log_page import Page, StageSlice
from tests.support import runs_by_hand, snapshots
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

FOLDED: list[tuple[int, int]] = []  # fold and sequence of each event that a fold got


class CountingFold(Fold):
    """Two messages for each chunk: how many came before, and the text. A restart ends the stream."""

    def __init__(self, run: RunFacts) -> None:
        super().__init__(run)
        self.chunks = 0

    def on_tool_completion_chunk(self, data: Json, sequence: int) -> list[bytes]:
        FOLDED.append((id(self), sequence))
        self.chunks += 1
        return [encode_data(self.chunks), *(encode_data(piece.text) for piece in pieces_of(data["tool_results"]))]

    def on_stage_restarted(self, data: Json, sequence: int) -> list[bytes]:
        return [encode_data("void"), END]

    def on_done(self, data: Json, sequence: int) -> list[bytes]:
        return [encode_data("end")]


class Reader:
    """A client of a folded view."""

    def __init__(self, hub: Hub, view: FoldedView) -> None:
        self.received = b""
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self.stream = hub.new_stream(view.run_id, START, view, is_strict=True)
        self.task = asyncio.create_task(self._read(hub))

    async def _read(self, hub: Hub) -> None:
        async with aclosing(hub.relay(self.stream, nullcontext(True))) as body:
            async for data in body:
                await self.is_reading.wait()
                self.received += data

    @property
    def messages(self) -> list[str]:
        return [frame.removeprefix("data: ") for frame in self.received.decode().split("\n\n")[:-1]]

    async def until_count(self, count: int) -> None:
        await until(lambda: len(self.messages) == count)


Read = Callable[..., Reader]


@pytest.fixture
async def read(hub: Hub, run: RunByHand) -> AsyncIterator[Read]:
    readers: list[Reader] = []
    FOLDED.clear()

    def start(**options: object) -> Reader:
        readers.append(Reader(hub, FoldedView(hub.folds, source_of(run), **options)))
        return readers[-1]

    yield start
    for reader in readers:
        reader.task.cancel()
    await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)


def source_of(run: RunByHand) -> FoldSource[CountingFold]:
    return FoldSource(RunFacts(run.run_id, 0, "m", {}), CountingFold)


def expected(*texts: str) -> list[str]:
    return [message for number, text in enumerate(texts, 1) for message in (str(number), f'"{text}"')]


async def test_clients_of_a_run_share_one_fold(hub: Hub, run: RunByHand, read: Read) -> None:
    readers = [read() for _ in range(3)]
    await run.say("a")
    late = read()
    for reader in [*readers, late]:
        await reader.until_count(2)
    await run.say("b", "c")
    await run.end()
    await asyncio.gather(*(reader.task for reader in [*readers, late]))

    assert all(reader.messages == [*expected("a", "b", "c"), '"end"'] for reader in [*readers, late])
    assert len(FOLDED) == 3, "each chunk was folded once"
    del readers, late, reader
    assert len(hub.folds) <= 1


async def test_client_behind_the_tail_folds_alone_and_joins(
    run: RunByHand, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded_view, "TAIL_MAX_BYTES", 0)
    early = read()
    await run.say("a", "b")
    await early.until_count(4)
    late = read()
    await late.until_count(4)
    folded = len(FOLDED)
    await run.say("c")
    await run.end()
    await asyncio.gather(early.task, late.task)

    assert folded == 4
    assert len(FOLDED) == 5, "both share the fold again"
    assert early.received == late.received


@pytest.mark.parametrize("tail_bytes", [0, 8192])
async def test_slow_client_gets_every_message_once(
    redis: Redis, settings: Settings, run: RunByHand, monkeypatch: pytest.MonkeyPatch, tail_bytes: int
) -> None:
    monkeypatch.setattr(folded_view, "TAIL_MAX_BYTES", tail_bytes)
    hub = Hub(redis, settings.model_copy(update={"stream_buffer_max_bytes": 200, "page_max_events": 5}))
    await hub.start()
    quick, slow = (Reader(hub, FoldedView(hub.folds, source_of(run))) for _ in range(2))
    await run.say("a")
    await quick.until_count(2)
    await slow.until_count(2)
    slow.is_reading.clear()
    texts = [str(number) for number in range(40)]
    for text in texts:
        await run.say(text)
    await quick.until_count(82)
    slow.is_reading.set()
    await run.end()
    await asyncio.wait_for(asyncio.gather(quick.task, slow.task), 10)

    assert slow.messages == quick.messages == [*expected("a", *texts), '"end"']
    await hub.stop()


async def test_lost_live_message_is_read_from_the_log(run: RunByHand, read: Read) -> None:
    readers = [read(), read()]
    await run.say("a")
    for reader in readers:
        await reader.until_count(2)
    with run.messages_lost():
        await run.say("b", "c")
    await run.say("d")
    await run.end()
    await asyncio.gather(*(reader.task for reader in readers))

    assert all(reader.messages == [*expected("a", "b", "c", "d"), '"end"'] for reader in readers)
    assert len(FOLDED) == 4


async def test_gap_and_drain_tear_the_stream(redis: Redis, hub: Hub, run: RunByHand, read: Read) -> None:
    lost, drained = read(), read()
    await run.say("a")
    await drained.until_count(2)
    drained.stream.close()
    with pytest.raises(StreamTorn):
        await asyncio.wait_for(drained.task, 5)
    snapshot = await snapshots.take(redis)
    await run.say("b")
    await lost.until_count(4)
    await snapshots.restore(redis, snapshot)
    lost.stream.catch_up()

    with pytest.raises(StreamTorn):
        await asyncio.wait_for(lost.task, 5)
    assert lost.messages == expected("a", "b")


async def test_stream_over_the_limit_fails_before_it_begins(redis: Redis, settings: Settings, run: RunByHand) -> None:
    hub = Hub(redis, settings.model_copy(update={"streams_max": 1}))
    await hub.start()
    first, second = (Reader(hub, FoldedView(hub.folds, source_of(run))) for _ in range(2))
    await until(lambda: hub.open_streams == 1)

    with pytest.raises(TooManyStreams):
        await second.task
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    await hub.stop()


async def test_end_message_ends_the_client_but_not_the_run(hub: Hub, run: RunByHand, read: Read) -> None:
    ended, whole = read(), read(is_whole=True)
    await run.say("a")
    await ended.until_count(2)
    await run.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=2))
    await asyncio.wait_for(ended.task, 5)
    voided = await find_voided(hub, run.run_id, RunOwner(DEFAULT_TENANT))
    settled = read(voided=voided)
    await run.say("b")
    await run.end()
    await asyncio.gather(whole.task, settled.task)

    assert ended.messages == [*expected("a"), '"void"']
    assert whole.stream.subscription._view.fold.chunks == 2
    assert voided == [Voided("extraction", 2, 3)]
    assert settled.messages == [*expected("b"), '"end"']


@pytest.mark.parametrize(
    ("text", "voided"),
    [
        ("ab", []),
        ("a", [Voided("extraction", 4, 5)]),
        ("c", [Voided("extraction", 4, 5)]),
        ("", [Voided("extraction", 4, 5)]),
    ],
)
async def test_text_that_the_result_does_not_have_is_void(
    hub: Hub, run: RunByHand, text: str, voided: list[Voided]
) -> None:
    """As of a model whose call stands in its text."""
    await run.put(ToolCompletionChunk.of("extraction", {"choices": [{"delta": {"reasoning": "Hm"}}]}))
    await run.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=3))
    await run.say("a", "b")
    await run.put(StageCompleted(stage_id="extraction", result={"text": text}))

    assert (await find_voided(hub, run.run_id, RunOwner(DEFAULT_TENANT)))[1:] == voided


async def test_every_position_in_the_messages_gives_exactly_the_rest(hub: Hub, run: RunByHand, read: Read) -> None:
    await run.say("a", "b")
    await run.end()
    whole = read()
    await whole.task

    for number in range(len(whole.messages)):
        start = await fold_log(hub, source_of(run), RunOwner(DEFAULT_TENANT), until=number)
        resumed = read(fold=start.fold, position=start.position)
        resumed.stream.subscription.position = start.position
        resumed.stream.subscription.begin_with(b"".join(start.rest))
        await resumed.task
        assert resumed.messages == whole.messages[number + 1 :]
    beyond = await fold_log(hub, source_of(run), RunOwner(DEFAULT_TENANT), until=len(whole.messages))
    assert (beyond.is_found, beyond.message_count, beyond.is_ended) == (False, len(whole.messages), True)


async def test_client_behind_events_that_redis_lost_continues_with_those_that_replaced_them(run: RunByHand) -> None:
    """The shared fold is ahead with events that the log no longer has; this client has seen none of them."""
    folds = Folds()
    ahead, behind = (FoldedView(folds, source_of(run)) for _ in range(2))
    lost, written = chunk_entry(b"1-2", "lost"), chunk_entry(b"2-2", "written")
    first = page(START, chunk_entry(b"1-1", "a"))
    for view in (ahead, behind):
        assert view.resume_at(START, first) == START
        view.encode_page(first)
    assert ahead.resume_at(EventId(1, 1), page(EventId(1, 1), lost)) == EventId(1, 1)
    ahead.encode_page(page(EventId(1, 1), lost))

    assert behind.resume_at(EventId(1, 1), page(EventId(1, 1), written)) == START
    whole = page(START, chunk_entry(b"1-1", "a"), written)
    assert behind.resume_at(START, whole) == START
    assert behind.encode_page(whole) == b'data: 2\n\ndata: "written"\n\n'


def chunk_entry(event_id: bytes, text: str) -> Any:
    """Returns an entry as the parser of Redis's replies does."""
    return [event_id, [b"event", b"tool_completion_chunk", b"data", runs_by_hand.chunk(text).data()]]


def page(after: EventId, *entries: Any) -> Page:
    """Returns the last page of a log."""
    last = parse_id(entries[-1][0].decode()) if entries else after
    return Page([StageSlice("extraction", list(entries))], last, is_last=True, is_ended=False)
