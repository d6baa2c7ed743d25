"""Reads log pages for the open streams of this process, a few at a time."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from stagebus.gateway.streaming.client_stream import ClientStream
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.errors import StorageUnavailable
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import Page
from stagebus.shared.storage.pipelined import PipelinedCommands
from stagebus.shared.storage.redis_client import REDIS_AWAY, storage_errors

# A stream waits no longer than this for its turn to read, so that no ping is late.
SLOT_WAIT_S: Final = 0.5
REDIS_DOWN_BACKOFF_S: Final = (0.2, 1.0)  # random between the two, so that thousands of streams do not retry together
# Log pages that are read concurrently. Each is in memory as reply, events and frames: when a hundred slow clients fell
# behind together, the process grew by 87 MiB; with this limit by 61.
CONCURRENT_PAGES_MAX: Final = 8
# A page of many events blocks the event loop while its reply is parsed, 2 us per event, so fewer of these are read
# concurrently. A client that reconnects to a run reads a short page and does not wait for the long ones.
CONCURRENT_LONG_PAGES_MAX: Final = 2
LONG_PAGE_EVENTS: Final = 200


class PageReader:
    """Reads the pages of all streams over one connection."""

    def __init__(self, connection: PipelinedCommands, settings: Settings) -> None:
        self._connection = connection
        self._page_max_events = settings.page_max_events
        self.short_pages = asyncio.Semaphore(CONCURRENT_PAGES_MAX - CONCURRENT_LONG_PAGES_MAX)
        self.long_pages = asyncio.Semaphore(CONCURRENT_LONG_PAGES_MAX)

    async def read_next(self, stream: ClientStream) -> int:
        """Hands the stream its next page and returns the page's number of events.

        Returns 0 after a while if too many others read one, or if Redis is down.

        Raises:
            RunNotFound: the run is gone, or belongs to another owner.
        """
        subscription = stream.subscription
        slots = self._slots(subscription.page_size(self._page_max_events))
        if not await acquire_for_a_while(slots):
            return 0
        try:
            page = await stream.read_page(self._connection, subscription.begin_page(self._page_max_events))
            subscription.add_page(page)
            return page.event_count
        except REDIS_AWAY:
            pass
        finally:
            slots.release()
        await back_off()
        return 0

    async def pages(self, run_id: str, owner: RunOwner) -> AsyncGenerator[Page, None]:
        """Yields the log as it is now, page by page.

        Raises:
            RunNotFound: the owner has no such run.
            StorageUnavailable: Redis is down, or it lost a part of the log between two pages.
        """
        position, limit = START, self._page_max_events
        stages_begun: Sequence[str] = ()
        while True:
            async with self._slots(limit):
                with storage_errors():
                    page = await log_reader.read_page(
                        self._connection, run_id, position, limit, owner=owner, stage_ids=stages_begun
                    )
            if page.gap is not None:
                raise StorageUnavailable
            yield page
            if page.is_last:
                return
            position, stages_begun = page.position, page.stage_ids

    def _slots(self, page_events: int) -> asyncio.Semaphore:
        return self.short_pages if page_events < LONG_PAGE_EVENTS else self.long_pages


async def acquire_for_a_while(slots: asyncio.Semaphore) -> bool:
    """Acquires a slot, which the caller releases; returns False after `SLOT_WAIT_S`."""
    try:
        async with asyncio.timeout(SLOT_WAIT_S):
            return await slots.acquire()
    except TimeoutError:
        return False


async def back_off() -> None:
    """Waits before Redis, which is down, is asked again."""
    await asyncio.sleep(random.uniform(*REDIS_DOWN_BACKOFF_S))  # noqa: S311 - jitter
