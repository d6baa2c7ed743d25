"""The hub with a real Redis server: log, then live, and every way to miss a message."""

from collections.abc import Callable
from contextlib import suppress

import orjson
import pytest
from redis.asyncio import Redis

from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.views import RunEventsView
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.storage import keys
from tests.gateway.conftest import Watcher
from tests.support import runs_by_hand, snapshots
from tests.support.redis_calls import subscriber_count
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until_equal

Watch = Callable[..., Watcher]


async def test_early_late_and_second_clients_see_every_event_once(run: RunByHand, watch: Watch) -> None:
    early = watch(run.run_id)
    await run.begin("extraction")
    await run.say("a", "b")
    late, again = watch(run.run_id), watch(run.run_id)
    await early.until(lambda w: len(w.frames) == 4)
    await run.say("c")
    await run.end()

    for watcher in (early, late, again):
        await watcher.until_end()
        assert watcher.sequences == [1, 2, 3, 4, 5, 6]
        assert watcher.frames[-1].event == "done"


async def test_relayed_events_of_streams_that_read_at_the_same_time_are_all_counted(
    hub: Hub, run: RunByHand, watch: Watch
) -> None:
    await run.say("a", "b")
    await run.end()
    watchers = [watch(run.run_id) for _ in range(8)]
    for watcher in watchers:
        await watcher.until_end()

    assert hub.events_relayed == 8 * 4


async def test_every_cursor_gives_exactly_the_rest(run: RunByHand, watch: Watch) -> None:
    ids = [EventId(0, 1), *await run.begin("extraction"), *await run.say("a", "b"), *await run.begin("synthesis")]
    ids += await run.say("c", stage_id="synthesis")
    ids.append(await run.end())

    for position, cursor in enumerate(ids):
        merged = await watch(run.run_id, cursor).until_end()
        stage = await watch(run.run_id, cursor, "synthesis").until_end()
        assert [frame.id for frame in merged.frames] == [str(event_id) for event_id in ids[position + 1 :]]
        assert [frame.id for frame in stage.frames] == [str(i) for i in ids[position + 1 :] if i.sequence > 4]


async def test_stream_of_a_stage_that_never_began_has_the_terminal_event(run: RunByHand, watch: Watch) -> None:
    live = watch(run.run_id, stage_id="synthesis")
    await run.say("a")
    end = await run.end()

    assert [frame.id for frame in (await live.until_end()).frames] == [str(end)]
    replayed = await watch(run.run_id, stage_id="synthesis").until_end()
    assert [frame.id for frame in replayed.frames] == [str(end)]


async def test_lost_message_is_read_from_the_log(redis: Redis, run: RunByHand, watch: Watch) -> None:
    watcher = watch(run.run_id)
    await run.say("a")
    await watcher.until(lambda w: len(w.frames) == 2)
    with run.messages_lost():
        await run.say("lost", "lost too")
    await run.say("heard")
    await watcher.until(lambda w: len(w.frames) == 5)

    assert watcher.sequences == [1, 2, 3, 4, 5]


async def test_lost_last_message_is_found_when_the_stream_is_quiet(
    redis: Redis, settings: Settings, run: RunByHand
) -> None:
    """The last event has no successor whose `before` would reveal its loss."""
    hub = Hub(redis, settings.model_copy(update={"ping_s": 0.3}))
    await hub.start()
    watcher = Watcher(hub, run.run_id)
    await run.say("a")
    await watcher.until(lambda w: len(w.frames) == 2)
    with run.messages_lost():
        await run.end()

    await watcher.until_end(5)
    assert watcher.sequences == [1, 2, 3]
    await hub.stop()


@pytest.mark.parametrize("fault", ["a record of another type", "an invalid last id", "an unforeseen error"])
async def test_broken_run_does_not_stop_pings_of_other_streams(
    redis: Redis, settings: Settings, run: RunByHand, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The ping task serves all streams of the process: it must not end, and a lost last message is still found."""
    hub = Hub(redis, settings.model_copy(update={"ping_s": 0.3}))
    await hub.start()
    broken = await runs_by_hand.start(redis)
    watchers = [Watcher(hub, broken.run_id), Watcher(hub, run.run_id)]
    for watcher in watchers:
        await watcher.until(lambda w: len(w.frames) == 1)
    if fault == "a record of another type":
        await redis.set(keys.run(broken.run_id), "junk", ex=60)
    elif fault == "an invalid last id":
        await redis.hset(keys.run(broken.run_id), "last_id", "junk")
    else:
        errors = iter([RuntimeError("unforeseen")])
        real = hub._check_positions
        monkeypatch.setattr(
            hub, "_check_positions", lambda quiet: _raise(e) if (e := next(errors, None)) else real(quiet)
        )
    for pings in (1, 2):
        await watchers[1].until(lambda w, pings=pings: w.received.count(b"\n:") >= pings, 5)
    with run.messages_lost():
        await run.end()

    await watchers[1].until_end(5)
    assert watchers[1].sequences == [1, 2]
    await hub.stop()
    with suppress(Exception):
        await watchers[0].until_end()
    await runs_by_hand.stop(broken)


def _raise(exc: Exception) -> None:
    raise exc


async def test_stream_that_fails_on_a_batch_does_not_affect_others(hub: Hub, run: RunByHand, watch: Watch) -> None:
    watchers = [watch(run.run_id) for _ in range(3)]
    for watcher in watchers:
        await watcher.until(lambda w: len(w.frames) == 1)
    for stream in hub._streams_by_run[run.run_id]:
        if stream is watchers[0].stream:
            stream.subscription._view = view = RunEventsView()
            view.encode_batch = lambda _: 1 / 0
    await run.say("a")
    await watchers[0].until(lambda w: len(w.frames) == 2)
    await run.end()

    for watcher in watchers:
        await watcher.until_end()
        assert watcher.sequences == [1, 2, 3], "the stream that failed reads the log"


async def test_cut_pubsub_connection_loses_no_event(redis: Redis, run: RunByHand, watch: Watch) -> None:
    watcher = watch(run.run_id)
    for i in range(30):
        await run.say(str(i))
        if i % 10 == 5:
            await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await run.end()

    await watcher.until_end()
    assert watcher.sequences == list(range(1, 33))


async def test_deaf_pubsub_connection_is_replaced_within_two_seconds(
    redis: Redis, hub: Hub, run: RunByHand, watch: Watch
) -> None:
    """The connection stays open, but the server sends nothing on it."""
    watcher = watch(run.run_id)
    await watcher.until(lambda w: len(w.frames) == 1)
    assert hub._channels._protocol is not None
    hub._channels._protocol.send("UNSUBSCRIBE")
    await run.say("unheard")

    await watcher.until(lambda w: len(w.frames) == 2, timeout_s=2.5)


async def test_slow_client_has_a_bounded_buffer_and_catches_up(
    redis: Redis, settings: Settings, run: RunByHand
) -> None:
    hub = Hub(redis, settings.model_copy(update={"stream_buffer_max_bytes": 2000}))
    await hub.start()
    watcher = Watcher(hub, run.run_id)
    await run.say("a")
    await watcher.until(lambda w: len(w.frames) == 2)
    watcher.is_reading.clear()
    for _ in range(300):
        await run.say("x" * 50)
    subscription = watcher.stream.subscription
    assert subscription._buffered_bytes + subscription._held_back_bytes < 5000
    watcher.is_reading.set()
    await run.end()

    await watcher.until_end()
    assert watcher.sequences == list(range(1, 304))
    await hub.stop()


async def test_connected_client_gets_a_gap_when_the_log_loses_its_tail(
    redis: Redis, run: RunByHand, watch: Watch
) -> None:
    """A zombie from before the loss may continue as the only writer; the next attempt writes other events."""
    await run.say("a")
    older = await snapshots.take(redis)
    merged, stage = watch(run.run_id), watch(run.run_id, stage_id="extraction")
    lost = (await run.say("lost", "lost too"))[-1]
    await merged.until(lambda w: len(w.frames) == 4)
    await stage.until(lambda w: len(w.frames) == 3)
    await runs_by_hand.stop(run)
    await snapshots.restore(redis, older)
    run.producer = await runs_by_hand.claim(redis, run.run_id, "w2")
    await run.say("other")
    await run.end()

    for watcher in (merged, stage):
        await watcher.until_end()
        gaps = [orjson.loads(frame.data) for frame in watcher.frames if frame.event == "gap"]
        assert gaps == [{"requested": str(lost), "earliest": "0-1", "latest": gaps[0]["latest"]}]
    after_gap = merged.frames[[frame.event for frame in merged.frames].index("gap") + 1 :]
    contents = [orjson.loads(f.data)["tool_results"]["choices"][0]["delta"]["content"] for f in after_gap[1:-1]]
    assert contents == ["a", "other"]
    assert after_gap[-1].event == "done"


async def test_cursor_that_is_not_in_the_log_gets_a_gap(redis: Redis, run: RunByHand, watch: Watch) -> None:
    await run.say("a")
    await run.end()

    watcher = await watch(run.run_id, EventId(999_999, 7)).until_end()

    assert watcher.frames[0].event == "gap"
    assert watcher.frames[0].id == "", "a gap does not move the client's cursor"
    assert watcher.sequences == [1, 2, 3]


async def test_drained_hub_ends_streams_without_a_terminal_event(
    redis: Redis, settings: Settings, run: RunByHand
) -> None:
    hub = Hub(redis, settings.model_copy(update={"drain_spread_s": 0.0}))
    await hub.start()
    watchers = [Watcher(hub, run.run_id) for _ in range(5)]
    for watcher in watchers:
        await watcher.until(lambda w: len(w.frames) == 1)
    await hub.drain()

    for watcher in watchers:
        await watcher.until_end()
        assert watcher.sequences == [1]
    assert hub.open_streams == 0
    await hub.stop()


async def test_last_stream_of_a_run_unsubscribes_it(redis: Redis, hub: Hub, run: RunByHand, watch: Watch) -> None:
    watcher = watch(run.run_id)
    await watcher.until(lambda w: len(w.frames) == 1)
    await watcher.stop()

    await until_equal(lambda: subscriber_count(redis, keys.live(run.run_id)), 0)


@pytest.mark.parametrize("cuts", [1, 3])
async def test_reconnecting_client_misses_no_event(run: RunByHand, watch: Watch, cuts: int) -> None:
    seen: list[int] = []
    cursor = EventId(0, 0)
    for round_number in range(cuts + 1):
        watcher = watch(run.run_id, cursor)
        await run.say(*"abc")
        count = 4 if round_number == 0 else 3
        await watcher.until(lambda w, count=count: len(w.frames) >= count)
        seen += watcher.sequences
        cursor = EventId(*map(int, watcher.frames[-1].id.split("-")))
        await watcher.stop()

    assert seen == list(range(1, 3 * (cuts + 1) + 2))


async def test_garbage_on_the_channel_makes_streams_read_the_log(redis: Redis, run: RunByHand, watch: Watch) -> None:
    watcher = watch(run.run_id)
    await run.say("a")
    await watcher.until(lambda w: len(w.frames) == 2)
    for garbage in (b"", b"\xff\xfe", b"1 2 3", b"1-2 3-x - run:1\nid"):
        await redis.publish(keys.live(run.run_id), garbage)
    await run.say("b")
    await run.end()

    await watcher.until_end()
    assert watcher.sequences == [1, 2, 3, 4]
