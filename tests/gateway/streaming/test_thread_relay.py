"""The stream of a thread with a real Redis server: turn after turn, from every cursor, and every way to miss a message."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.thread_relay import ThreadRelay
from stagebus.gateway.streaming.thread_stream import TurnStep, step_for
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.tenants import DEFAULT_TENANT, RunOwner
from stagebus.shared.domain.thread_cursor import THREAD_START, ThreadCursor, parse_thread_cursor
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.log import sse
from stagebus.shared.log.sse import Frame
from stagebus.shared.storage import keys
from stagebus.shared.store import thread_news
from stagebus.shared.store.thread_news import StoredTurn
from tests.support import runs_by_hand
from tests.support.redis_calls import subscriber_count
from tests.support.turns_by_hand import TurnsByHand
from tests.support.waiting import until_equal

IDENTITY = ThreadIdentity(DEFAULT_TENANT, "", "chat {7}")
RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"


class Reader:
    """A client of a thread's stream, which takes what the relay yields and can be cut off after any frame."""

    def __init__(self, relay: ThreadRelay, thread_key: str, cursor: str = "", *, is_until_idle: bool = False) -> None:
        place = parse_thread_cursor(cursor)
        self.stream = relay.new_stream(thread_key, RunOwner(DEFAULT_TENANT), place, is_until_idle=is_until_idle)
        self.frames: list[Frame] = []
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read(relay))

    async def _read(self, relay: ThreadRelay) -> None:
        async with aclosing(relay.relay(self.stream, nullcontext(True))) as body:
            async for data in body:
                await self.is_reading.wait()
                async with self._changed:
                    self.frames += sse.decode(data)
                    self._changed.notify_all()

    @property
    def ids(self) -> list[str]:
        return [frame.id for frame in self.frames if frame.id]

    @property
    def cursor(self) -> str:
        return self.ids[-1] if self.ids else ""

    def named(self, event: str) -> list[dict[str, Any]]:
        return [orjson.loads(frame.data) for frame in self.frames if frame.event == event]

    async def until(self, condition: Callable[["Reader"], object], timeout_s: float = 10) -> "Reader":
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self))
        return self

    async def until_ended(self) -> "Reader":
        await asyncio.wait_for(asyncio.shield(self._task), 10)
        return self

    async def stop(self) -> None:
        self.stream.close()
        await self.until_ended()


Watch = Callable[..., Reader]


@pytest.fixture
async def thread(redis: Redis) -> TurnsByHand:
    thread = TurnsByHand(redis, IDENTITY)
    await thread.create()
    return thread


@pytest.fixture
async def relay(hub: Hub, settings: Settings) -> ThreadRelay:
    return ThreadRelay(hub, settings)


@pytest.fixture
async def watch(relay: ThreadRelay, thread: TurnsByHand) -> AsyncIterator[Watch]:
    readers: list[Reader] = []

    def make(cursor: str = "", **options: Any) -> Reader:
        readers.append(Reader(relay, thread.key, cursor, **options))
        return readers[-1]

    yield make
    for reader in readers:
        await reader.stop()
    for run in thread.runs:
        await runs_by_hand.stop(run)


async def three_turns(thread: TurnsByHand) -> list[str]:
    """Makes three turns of four events; returns the ids of all events."""
    expected = []
    for number in range(3):
        run = await thread.begin(f"question {number}", parent=thread.runs[-1].run_id if thread.runs else "")
        last = await thread.end(f"answer {number}")
        attempt = last.partition(".")[2].partition("-")[0]
        expected += [f"{run.run_id}.0-1", *(f"{run.run_id}.{attempt}-{sequence}" for sequence in (2, 3))]
    return expected


async def test_a_live_client_gets_each_turn_and_each_event_once(thread: TurnsByHand, watch: Watch) -> None:
    live, lines = watch(), watch()
    expected = await three_turns(thread)
    late = watch()

    for reader in (live, lines, late):
        await reader.until(lambda r: len(r.ids) >= 9)
        assert reader.ids == expected
        turns = reader.named("turn")
        assert [turn["seq"] for turn in turns] == [1, 2, 3]
        assert [turn["run_id"] for turn in turns] == [run.run_id for run in thread.runs]
        assert [turn["parent_run_id"] for turn in turns] == [None, turns[0]["run_id"], turns[1]["run_id"]]
        assert turns[1]["messages"] == [{"role": "user", "content": "question 1"}]


async def test_a_client_that_is_cut_after_every_frame_gets_each_event_once(thread: TurnsByHand, watch: Watch) -> None:
    """Its only state is the last id, as an EventSource has it."""
    expected = await three_turns(thread)
    cursor, seen = "", []
    while len(seen) < len(expected):
        reader = await watch(cursor).until(lambda r: r.ids)
        await reader.stop()
        assert next(frame.event for frame in reader.frames if frame.event != "waiting") == "turn", (
            "a client learns which turn the events are of"
        )
        seen.append(reader.ids[0])
        cursor = reader.ids[0]

    assert seen == expected


async def test_every_cursor_gives_exactly_the_rest(thread: TurnsByHand, watch: Watch) -> None:
    expected = await three_turns(thread)
    for position, cursor in enumerate(expected):
        reader = await watch(cursor, is_until_idle=True).until_ended()
        assert reader.ids == expected[position + 1 :]
        assert not reader.named("gap")


async def test_clients_share_the_bytes_of_a_live_batch(thread: TurnsByHand, watch: Watch) -> None:
    run = await thread.begin()
    first, second = watch(), watch()
    for reader in (first, second):
        await reader.until(lambda r: len(r.ids) == 1 and r.stream.subscription.is_live)
    await run.say("a", "b id: 7-7")

    await first.until(lambda r: len(r.ids) == 3)
    assert first.frames == (await second.until(lambda r: len(r.ids) == 3)).frames
    assert "b id: 7-7" in first.frames[-1].data
    assert first.stream.subscription._view is second.stream.subscription._view


async def test_lost_messages_of_the_channel_are_made_up_for(
    redis: Redis, settings: Settings, thread: TurnsByHand
) -> None:
    """A turn that begins while nobody is told is found when the stream is quiet; so is a run that waits."""
    hub = Hub(redis, settings.model_copy(update={"ping_s": 0.3}))
    await hub.start()
    reader = Reader(ThreadRelay(hub, settings), thread.key)
    await thread.begin()
    await thread.end()
    await reader.until(lambda r: len(r.ids) == 3)
    thread.is_lossy = True
    await thread.begin()
    await reader.until(lambda r: len(r.named("turn")) == 2)
    await thread.wait(RUN)
    await reader.until(lambda r: r.named("waiting"))
    await reader.stop()
    await hub.stop()
    for run in thread.runs:
        await runs_by_hand.stop(run)


async def test_waiting_runs_are_told_when_they_change(thread: TurnsByHand, watch: Watch) -> None:
    active = await thread.begin()
    reader = await watch().until(lambda r: r.ids)
    assert not reader.named("waiting")
    await thread.wait(RUN)
    await reader.until(lambda r: r.named("waiting"))
    other = ids.new_run_id()
    await thread.wait(other, f"steer:{active.run_id}")
    await reader.until(lambda r: len(r.named("waiting")) == 2)

    assert reader.named("waiting")[-1]["runs"] == [
        {"run_id": RUN, "position": 1, "on_active": "enqueue", "steers": None},
        {"run_id": other, "position": 2, "on_active": "steer", "steers": active.run_id},
    ]
    late = await watch().until(lambda r: r.ids)
    assert late.named("waiting") == reader.named("waiting")[-1:]


async def test_expired_log_is_replaced_by_a_snapshot_with_the_cursor_of_its_end(
    thread: TurnsByHand, watch: Watch
) -> None:
    expected = await three_turns(thread)
    first, second, _ = thread.runs
    await thread.expire(second.run_id)
    reader = await watch(is_until_idle=True).until_ended()

    assert reader.ids == [*expected[:3], expected[5], *expected[6:]]
    (snapshot,) = reader.named("turn_snapshot")
    assert snapshot == {
        "run_id": second.run_id, "parent_run_id": first.run_id, "seq": 2, "status": "succeeded",
        "messages": [{"role": "user", "content": "question 1"}],
        "result": [{"role": "assistant", "content": "answer 1"}],
    }  # fmt: skip
    after = await watch(expected[5], is_until_idle=True).until_ended()
    assert after.ids == expected[6:]
    assert not after.named("gap")


async def test_snapshot_has_no_notes_of_models(thread: TurnsByHand, watch: Watch, redis: Redis) -> None:
    await three_turns(thread)
    run_id = thread.runs[1].run_id
    await thread.expire(run_id)
    kept = b'[{"role":"assistant","content":"eins","origin":{"items":"secret"}}]'
    await redis.hset(keys.thread_out(thread.key), run_id, kept)  # type: ignore[misc]
    reader = await watch(is_until_idle=True).until_ended()

    assert reader.named("turn_snapshot")[0]["result"] == [{"role": "assistant", "content": "eins"}]


async def test_cursor_within_an_expired_log_gets_a_gap_and_the_snapshot(thread: TurnsByHand, watch: Watch) -> None:
    expected = await three_turns(thread)
    await thread.expire(thread.runs[1].run_id)
    reader = await watch(expected[4], is_until_idle=True).until_ended()

    assert [frame.event for frame in reader.frames][:3] == ["waiting", "gap", "turn_snapshot"]
    assert reader.named("waiting") == [{"runs": []}], "those of which the client knows have left"
    gap = reader.named("gap")[0]
    assert gap == {"run_id": thread.runs[1].run_id, "requested": expected[4], "earliest": None, "latest": None}
    assert reader.ids == expected[5:]


async def test_cursor_that_the_log_does_not_have_gets_the_gap_of_a_run(thread: TurnsByHand, watch: Watch) -> None:
    expected = await three_turns(thread)
    run_id = thread.runs[0].run_id
    reader = await watch(f"{run_id}.9-99", is_until_idle=True).until_ended()

    assert reader.named("gap") == [
        {"run_id": run_id, "requested": f"{run_id}.9-99", "earliest": expected[0], "latest": expected[2]}
    ]
    assert reader.ids == expected


async def test_cursor_of_another_thread_gets_a_gap_and_the_whole_thread(thread: TurnsByHand, watch: Watch) -> None:
    expected = await three_turns(thread)
    reader = await watch(f"{RUN}.5-5", is_until_idle=True).until_ended()

    assert reader.named("gap") == [{"run_id": None, "requested": f"{RUN}.5-5", "earliest": None, "latest": None}]
    assert reader.ids == expected


async def test_deleted_turn_is_told_and_the_next_one_follows(thread: TurnsByHand, watch: Watch) -> None:
    expected = await three_turns(thread)
    connected = await watch().until(lambda r: len(r.ids) == 9)
    first, second, _ = thread.runs
    await thread.forget(second.run_id)
    told = {"run_id": second.run_id, "parent_run_id": first.run_id, "seq": 2}

    assert (await connected.until(lambda r: r.named("turn_deleted"))).named("turn_deleted") == [told]
    for cursor, ids_after in (
        ("", expected[:3] + expected[5:]),
        (expected[4], expected[5:]),
        (expected[5], expected[6:]),
    ):
        reader = await watch(cursor, is_until_idle=True).until_ended()
        assert reader.named("turn_deleted") == [told]
        assert reader.ids == ids_after, "in place of the turn, its end's id"


async def test_stream_after_a_deleted_last_turn_is_at_its_end(thread: TurnsByHand, watch: Watch) -> None:
    """A client that gets the deletion in place of the turn has the end as cursor, so that a reconnect ends with 204."""
    expected = await three_turns(thread)
    await thread.forget(thread.runs[-1].run_id)
    tip = await thread_news.read_tip(thread.redis, thread.key)

    for cursor in ("", expected[5], expected[7]):
        reader = await watch(cursor, is_until_idle=True).until_ended()
        assert tip is not None
        assert reader.cursor == str(tip.cursor) == expected[-1]


async def test_stream_ends_when_the_thread_is_deleted(thread: TurnsByHand, watch: Watch) -> None:
    await three_turns(thread)
    reader = await watch().until(lambda r: len(r.ids) == 9)
    await thread.delete()

    await reader.until_ended()


async def test_stream_ends_when_the_thread_is_another_one_of_the_same_id(thread: TurnsByHand, watch: Watch) -> None:
    await three_turns(thread)
    reader = await watch().until(lambda r: len(r.ids) == 9)
    thread.is_lossy = True
    await thread.delete()
    await thread.create("2")
    thread.is_lossy = False
    await thread.announce("active")

    await reader.until_ended()


async def test_until_idle_waits_for_the_active_and_the_waiting_runs(thread: TurnsByHand, watch: Watch) -> None:
    await thread.begin()
    waiting = await runs_by_hand.start(thread.redis)
    await thread.wait(waiting.run_id)
    reader = watch(is_until_idle=True)
    await thread.end()
    await reader.until(lambda r: len(r.ids) == 3)
    thread.runs.append(waiting)
    await thread.activate(waiting.run_id)
    await reader.until(lambda r: len(r.ids) == 4)
    await thread.end()

    assert len((await reader.until_ended()).ids) == 6


async def test_run_that_redis_lost_is_waited_for_until_the_thread_knows(thread: TurnsByHand, watch: Watch) -> None:
    run = await thread.begin()
    reader = await watch().until(lambda r: r.ids)
    await thread.expire(run.run_id)
    reader.stream.catch_up()
    await until_equal(lambda: reader.stream.is_joined, False)
    await thread.close(run.run_id, "", status="lost")
    await reader.until(lambda r: r.named("turn_snapshot"))

    assert reader.named("turn_snapshot")[0]["status"] == "lost"
    assert reader.named("gap")[0]["requested"] == f"{run.run_id}.0-1"
    assert reader.cursor == f"{run.run_id}.0-2", "the id of no event"
    again = await watch(reader.cursor, is_until_idle=True).until_ended()
    assert not again.ids


async def test_slow_client_has_a_bounded_buffer_and_catches_up_over_turns(thread: TurnsByHand, watch: Watch) -> None:
    run = await thread.begin()
    slow = await watch().until(lambda r: r.ids and r.stream.subscription.is_live)
    slow.is_reading.clear()
    for number in range(40):
        await run.say(f"{number} " + "x" * 10_000)
    await thread.end()
    await three_turns(thread)
    slow.is_reading.set()
    await slow.until(lambda r: len(r.ids) == 1 + 40 + 2 + 9)

    assert len(set(slow.ids)) == len(slow.ids)


async def test_channels_are_left_when_the_last_client_leaves(
    redis: Redis, hub: Hub, thread: TurnsByHand, watch: Watch
) -> None:
    run = await thread.begin()
    readers = [await watch().until(lambda r: r.ids) for _ in range(2)]
    assert hub.open_streams == 2
    for reader in readers:
        await reader.stop()

    assert hub.open_streams == 0
    for channel in (keys.thread_live(thread.key), keys.live(run.run_id)):
        await until_equal(lambda channel=channel: subscriber_count(redis, channel), 0)  # type: ignore[misc]


async def test_drain_ends_streams_between_turns_too(hub: Hub, thread: TurnsByHand, watch: Watch) -> None:
    await thread.begin()
    await thread.end()
    idle = await watch().until(lambda r: len(r.ids) == 3)
    await hub.drain()

    await idle.until_ended()


TURN = StoredTurn(RUN, 1, "", "succeeded", EventId(7, 4), is_deleted=False, messages=b"[]", has_log=True)
ACTIVE = TURN._replace(status="", end_id=START)


@pytest.mark.parametrize(
    ("turn", "cursor", "step"),
    [
        (ACTIVE, START, TurnStep.FOLLOW),
        (ACTIVE, EventId(7, 4), TurnStep.FOLLOW),
        (TURN, START, TurnStep.FOLLOW),
        (TURN, EventId(7, 4), TurnStep.PASS),
        (TURN._replace(has_log=False), EventId(7, 4), TurnStep.PASS),
        (TURN._replace(has_log=False), EventId(7, 3), TurnStep.SNAPSHOT),
        (ACTIVE._replace(has_log=False), EventId(7, 3), TurnStep.WAIT),
        (TURN._replace(is_deleted=True), EventId(7, 4), TurnStep.TELL_DELETED),
        (ACTIVE._replace(is_deleted=True, has_log=False), START, TurnStep.TELL_DELETED),
    ],
)
def test_step_for_a_turn(turn: StoredTurn, cursor: EventId, step: TurnStep) -> None:
    assert step_for(turn, cursor) is step


async def test_a_new_stream_has_work(relay: ThreadRelay) -> None:
    stream = relay.new_stream("sb:thread:{CE}:x", RunOwner("t"))

    assert stream.has_work
    assert stream.cursor == THREAD_START == ThreadCursor("", START)


async def test_stream_waits_with_pings_while_redis_is_down(nowhere: Redis, settings: Settings) -> None:
    """Any end would make a browser's EventSource reconnect for nothing, and an error would make it give up."""
    hub = Hub(nowhere, settings.model_copy(update={"ping_s": 0.1}))
    await hub.start()
    relay = ThreadRelay(hub, settings)
    stream = relay.new_stream("sb:thread:{CE}:x", RunOwner(DEFAULT_TENANT))
    received = []
    async with asyncio.timeout(10), aclosing(relay.relay(stream, nullcontext(True))) as body:
        async for data in body:
            received.append(data)
            if data == sse.PING:
                break
    await hub.stop()

    assert received == [sse.encode_retry(settings.sse_retry_ms), sse.PING]
    assert hub.open_streams == 0


async def test_stream_catches_up_after_redis_was_down(redis: Redis, thread: TurnsByHand, watch: Watch) -> None:
    """Its connections break between and within turns, and messages are lost meanwhile."""
    run = await thread.begin()
    reader = await watch().until(lambda r: r.ids)
    for kind in ("pubsub", "normal"):
        await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    with run.messages_lost():
        await run.say("lost")
    thread.is_lossy = True
    await thread.end()
    await thread.begin()
    await thread.end()

    await reader.until(lambda r: len(r.ids) == 7)
    assert len(set(reader.ids)) == 7
    assert [turn["seq"] for turn in reader.named("turn")] == [1, 2]
