"""Paginated, filtered list of a tenant's threads, the last active first.

The index is a sorted set in each partition, by the time of the last activity. A page is merged from all of them. As with
runs, a search examines a limited number of threads per page, so a page may be short and still name its successor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Any, Final, NamedTuple, Self

import orjson

from stagebus.shared.domain.partitions import TAGS
from stagebus.shared.domain.threads import ThreadIdentity
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.thread_errors import ThreadNotFound

EXAMINED_MAX: Final = 500
# A read gets this many extra entries, since those of the cursor's own millisecond may come first.
SAME_MS: Final = 16
_DESCRIBE: Final = Script("thread_describe")
_FIELDS: Final = (
    "gen", "deleting", "user", "thread_id", "title", "metadata", "created_at", "updated_at", "active", "head", "count", "bytes",
)  # fmt: skip


class ThreadPlace(NamedTuple):
    """The place of a thread in the list: its last activity, Unix ms, and its Redis key, which orders equal times."""

    updated_at: int
    thread_key: str

    def __str__(self) -> str:
        return f"{self.updated_at}-{self.thread_key.rpartition(':')[2]}"

    def is_before(self, cursor: "ThreadCursorPlace") -> bool:
        """Returns whether the list has this place after a cursor's, so that the next page begins there."""
        return (self.updated_at, self.thread_key.rpartition(":")[2]) < cursor


class ThreadCursorPlace(NamedTuple):
    """The place at which a page of the list ended: the time, and the digest of the thread."""

    updated_at: int
    digest: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses the text of a `ThreadPlace`."""
        updated_at, _, digest = text.partition("-")
        return cls(int(updated_at), digest)


CURSOR_PATTERN: Final = "[0-9]{1,15}-[0-9a-f]{32}"


@dataclass(frozen=True, slots=True)
class ThreadFilter:
    """Conditions on threads, all of which must match; an empty one matches every thread.

    Attributes:
        user: the person whose threads are listed; None: everybody's.
        text: a part of the title, the id or a metadata value, in any case.
        metadata: metadata keys and their values.
    """

    user: str | None = None
    text: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def matches(self, thread: "ListedThread") -> bool:
        """Returns whether the thread matches."""
        if self.user is not None and thread.user != self.user:
            return False
        if any(thread.metadata.get(key) != value for key, value in self.metadata.items()):
            return False
        text = self.text.casefold()
        return any(text in part.casefold() for part in (thread.title, thread.thread_id, *thread.metadata.values()))


EVERY_THREAD: Final = ThreadFilter()


class ListedThread(NamedTuple):
    """A thread without its turns. Times are Unix ms; `life_id` is as in `Thread`."""

    user: str
    thread_id: str
    title: str
    metadata: dict[str, str]
    created_at: int
    updated_at: int
    active_run_id: str
    head_run_id: str
    run_count: int
    size: int
    life_id: str


class ThreadPage(NamedTuple):
    """Threads, the last active first, and the cursor of the next page."""

    threads: list[ListedThread]
    next: str | None


async def list_threads(
    redis: Redis, tenant: str, limit: int, before: str | None = None, wanted: ThreadFilter = EVERY_THREAD
) -> ThreadPage:
    """Lists a tenant's matching threads that were last active before the cursor.

    Returns:
        At most `limit` threads; fewer with a cursor if the search reached the limit of one page.
    """
    examined_max = EXAMINED_MAX if wanted != EVERY_THREAD else limit
    places = await _read_places(redis, tenant, before, examined_max)
    found: list[ListedThread] = []
    examined = places[:examined_max]
    for at in range(0, len(examined), limit):
        chunk = examined[at : at + limit]
        threads = await _read_threads(redis, [place.thread_key for place in chunk])
        for place, thread in zip(chunk, threads, strict=True):
            if thread is None or not wanted.matches(thread):
                continue
            found.append(thread)
            if len(found) == limit:
                return ThreadPage(found, str(place) if place != places[-1] else None)
    return ThreadPage(found, str(examined[-1]) if len(places) > len(examined) else None)


async def _read_places(redis: Redis, tenant: str, before: str | None, count: int) -> list[ThreadPlace]:
    """Reads the places after the cursor from all partitions: up to `count`, and one more to tell whether more follow."""
    cursor = None if before is None else ThreadCursorPlace.parse(before)
    high: int | str = "+inf" if cursor is None else cursor.updated_at
    async with redis.pipeline(transaction=False) as pipe:
        for tag in TAGS:
            index = keys.threads_of_tenant(tag, tenant)
            pipe.zrevrangebyscore(index, high, "-inf", start=0, num=count + SAME_MS, withscores=True)
        replies = await pipe.execute()
    parts = [[ThreadPlace(int(score), key.decode()) for key, score in reply] for reply in replies]
    ordered = merge(*(sorted(part, key=_order, reverse=True) for part in parts), key=_order, reverse=True)
    rest = [place for place in ordered if cursor is None or place.is_before(cursor)]
    return rest[: count + 1]


def _order(place: ThreadPlace) -> tuple[int, str]:
    return place.updated_at, place.thread_key.rpartition(":")[2]


async def find_thread(redis: Redis, identity: ThreadIdentity) -> ListedThread:
    """Reads a thread without its turns.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    (thread,) = await _read_threads(redis, [keys.thread(identity)])
    if thread is None:
        raise ThreadNotFound(identity.thread_id)
    return thread


async def describe_thread(
    redis: Redis, identity: ThreadIdentity, *, title: str | None = None, metadata: Mapping[str, str] | None = None
) -> ListedThread:
    """Sets the title and the metadata of a thread; None leaves them as they are, empty ones remove them.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    args: list[str | bytes] = []
    if title is not None:
        args += ["title", title]
    if metadata is not None:
        args += ["metadata", orjson.dumps(metadata) if metadata else ""]
    if not await _DESCRIBE(redis, [keys.thread(identity)], args):
        raise ThreadNotFound(identity.thread_id)
    return await find_thread(redis, identity)


async def _read_threads(redis: Redis, thread_keys: Sequence[str]) -> list[ListedThread | None]:
    async with redis.pipeline(transaction=False) as pipe:
        for thread_key in thread_keys:
            pipe.hmget(thread_key, list(_FIELDS))
        return [_decode(reply) for reply in await pipe.execute()]


def _decode(values: Sequence[bytes | None]) -> ListedThread | None:
    fields: dict[str, Any] = {name: (value or b"").decode() for name, value in zip(_FIELDS, values, strict=True)}
    if not fields["gen"] or fields["deleting"]:
        return None  # deleted or expired since
    return ListedThread(
        user=fields["user"],
        thread_id=fields["thread_id"],
        title=fields["title"],
        metadata=orjson.loads(fields["metadata"] or "{}"),
        created_at=int(fields["created_at"] or 0),
        updated_at=int(fields["updated_at"] or 0),
        active_run_id=fields["active"],
        head_run_id=fields["head"],
        run_count=int(fields["count"] or 0),
        size=int(fields["bytes"] or 0),
        life_id=fields["gen"],
    )
