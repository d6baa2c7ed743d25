"""The Redis commands of relay and replay, counted by the server: none for a live event, one page read for many old ones."""

import math
from collections.abc import Callable

from redis.asyncio import Redis

from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from tests.gateway.conftest import Watcher
from tests.support import runs_by_hand
from tests.support.redis_calls import calls, sent
from tests.support.runs_by_hand import RunByHand
from tests.support.waiting import until

Watch = Callable[..., Watcher]

RUNS = 3
CLIENTS = 4  # on each
LIVE_EVENTS = 20
OLD_EVENTS = 2000


async def test_live_events_cost_no_redis_command_per_client(redis: Redis, hub: Hub, watch: Watch) -> None:
    """An event costs its append, and its message goes to the gateway once, however many clients watch."""
    runs = [await runs_by_hand.start(redis) for _ in range(RUNS)]
    watchers = [watch(run.run_id) for run in runs for _ in range(CLIENTS)]
    for run in runs:
        await run.say("the stage begins")
    for watcher in watchers:
        await watcher.until(lambda w: len(w.sequences) == 2)
    await until(lambda: all(watcher.stream.subscription.is_live for watcher in watchers))

    before = await calls(redis)
    for number in range(LIVE_EVENTS):
        for run in runs:
            await run.say(str(number))
    for watcher in watchers:
        await watcher.until(lambda w: len(w.sequences) == 2 + LIVE_EVENTS)
    used = await calls(redis) - before
    for run in runs:
        await runs_by_hand.stop(run)

    assert used["xadd"] == used["evalsha"] == used["hmget"] == used["hset"] == RUNS * LIVE_EVENTS
    assert used.keys() - {"info"} == {"xadd", "evalsha", "hmget", "hset", "exists", "publish"}


async def test_replay_costs_one_round_trip_per_page(
    redis: Redis, settings: Settings, run: RunByHand, watch: Watch
) -> None:
    """A page reads two streams: the journal and the stage. The first finds the stages, the last finds the end."""
    await watch(run.run_id).until(lambda w: len(w.sequences) == 1)  # its connection is open now
    await run.say(*(" token" for _ in range(OLD_EVENTS)))
    pages = math.ceil(OLD_EVENTS / settings.page_max_events) + 2

    before, sent_before = await calls(redis), await sent(redis)
    await watch(run.run_id).until(lambda w: len(w.sequences) == 1 + OLD_EVENTS)
    used, reads = await calls(redis) - before, await sent(redis) - sent_before

    assert used["xrange"] <= 2 * pages
    assert used["hmget"] <= pages
    assert reads <= pages + 4  # a SUBSCRIBE, a canary, and the two commands that count
