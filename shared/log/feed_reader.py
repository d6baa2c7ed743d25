"""Reads a tenant's feed: what happened to its runs, oldest first. `announce.lua` writes it.

    1735689600000-1  run_created  {"run_id": "01J…", "status": "queued", "event_id": "0-1", "at": 1735689600000}

Its pages have the form of a log's pages, so that a stream of the feed is like a stream of a run. An id is the time in
ms, by Redis's clock, and a number. The feed is bounded: a cursor that it has lost leads to a gap.
"""

from typing import Any, Final

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.log.log_page import LogGap, Page, StageSlice
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import ReadConnection, read_at_once
from stagebus.shared.storage.redis_client import Redis

# A cursor that stands for the feed's end at the time of the read.
NOW: Final = EventId(-1, 0)
_SLICE: Final = "feed"


async def read_page(connection: ReadConnection, tenant: str, after: EventId, limit: int) -> Page:
    """Reads the next page of a tenant's feed.

    Args:
        after: the cursor; NOW for an empty page at the feed's end. If the feed does not have it, the page starts at the
            earliest entry and has a `gap`.
        limit: the maximum number of entries.
    """
    feed = keys.feed(tenant)
    low = "-" if after in (START, NOW) else str(after)
    newest, first, entries = await read_at_once(
        connection,
        [
            ("XREVRANGE", feed, "+", "-", "COUNT", 1),
            ("XRANGE", feed, "-", "+", "COUNT", 1),
            ("XRANGE", feed, low, "+", "COUNT", limit + 1),
        ],
    )
    latest = _id_of(newest[0]) if newest else START
    if after == NOW:
        return Page([], latest, is_last=True, is_ended=False)
    if after != START:
        if not entries or _id_of(entries[0]) != after:
            page = await read_page(connection, tenant, START, limit)
            return page._replace(gap=LogGap(after, _id_of(first[0]) if first else START, latest))
        del entries[0]
    del entries[limit:]
    position = _id_of(entries[-1]) if entries else latest
    return Page([StageSlice(_SLICE, entries)] if entries else [], position, position == latest, is_ended=False)


def _id_of(entry: Any) -> EventId:
    return parse_id(entry[0].decode())


async def read_last_id(redis: Redis, tenant: str) -> EventId:
    """Reads the id of a feed's newest entry; START if it has none."""
    newest = await redis.xrevrange(keys.feed(tenant), count=1)
    return _id_of(newest[0]) if newest else START
