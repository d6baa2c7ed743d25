"""A stream of a tenant's feed. For the hub it is like a stream of a run that never ends."""

import math
from collections.abc import Sequence
from typing import Any

import orjson

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.gateway.streaming.subscription import Subscription
from stagebus.gateway.streaming.views import EventView
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.log import feed_reader, log_reader, sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page, StoredEvent
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import ReadConnection
from stagebus.shared.storage.redis_client import Redis


class FeedView(EventView):
    """The entries of a feed: all of them, or those of one person's runs."""

    def __init__(self, user: str | None = None) -> None:
        """`user` is the person within the tenant; None: everybody."""
        self._user = user

    def encode_page(self, page: Page) -> bytes:
        """Returns the frames of the entries that the client may see."""
        if self._user is None:
            return page.frames()
        return b"".join([sse.encode(event.id, event.event, event.data) for event in self.visible(page.events)])

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the frames of the batch that the client may see."""
        if self._user is None:
            return batch.frames
        return b"".join([sse.encode(*event) for event in batch.events() if self._is_visible(event[2])])

    def visible(self, events: list[StoredEvent]) -> list[StoredEvent]:
        """Returns the entries that the client may see."""
        return [event for event in events if self._is_visible(event.data)]

    def _is_visible(self, data: bytes) -> bool:
        return self._user is None or orjson.loads(data).get("user", "") == self._user


class FeedStream(ClientStream):
    """One client's stream of its tenant's feed."""

    __slots__ = ("feed_tenant",)

    def __init__(self, tenant: str, cursor: EventId, view: FeedView, buffer_max_bytes: int) -> None:
        super().__init__("", Subscription(cursor, view, buffer_max_bytes), owner=RunOwner(tenant))
        self.feed_tenant = tenant
        self.check_at = math.inf  # no run whose worker may be missing

    @property
    def source(self) -> str:
        """The feed's key."""
        return keys.feed(self.feed_tenant)

    @property
    def channel(self) -> str:
        """The channel of the feed's live entries."""
        return keys.feed(self.feed_tenant)

    async def read_page(self, connection: ReadConnection, limit: int) -> Page:
        """Reads the next page of the feed."""
        return await feed_reader.read_page(connection, self.feed_tenant, self.subscription.position, limit)

    def count_events(self, batch: LiveBatch) -> int:  # noqa: ARG002
        """Returns 1: each entry is published by itself, and its number counts within its millisecond."""
        return 1

    def _record_events(self) -> None:
        pass


async def read_ends(redis: Redis, streams: Sequence[ClientStream]) -> list[EventId | None]:
    """Reads the last id of what each stream shows, a run or a feed; None for a run without a readable record."""
    feeds = {stream.source: stream.feed_tenant for stream in streams if isinstance(stream, FeedStream)}
    run_ids = [stream.run_id for stream in streams if stream.source not in feeds]
    ends = dict(zip(run_ids, await log_reader.read_last_ids(redis, run_ids), strict=True))
    for source, tenant in feeds.items():
        ends[source] = await feed_reader.read_last_id(redis, tenant)
    return [ends[stream.source] for stream in streams]


def entries_of(page: Page, view: FeedView) -> list[dict[str, Any]]:
    """Returns the entries of a page that the client may see, for orjson."""
    return [
        {"id": event.id.decode(), "event": event.event.decode(), "data": orjson.Fragment(event.data)}
        for event in view.visible(page.events)
    ]
