"""Paginated, filtered list of the runs of a tenant or of one of its users, newest first.

The only index is the creation time per tenant and per user, so a search reads records one after the other. The number of records and bytes per
page is limited: a page may be short, or empty, and still name the id after which the search continues.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Final, NamedTuple

from stagebus.shared.domain import ids
from stagebus.shared.domain.requests import excerpt_of, parse_models
from stagebus.shared.domain.runs import RunRecord, RunStatus, decode_run
from stagebus.shared.domain.tenants import RunOwner
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import Redis

# The cost of one page is limited: runs examined, and bytes of requests read.
EXAMINED_MAX: Final = 500
READ_MAX_BYTES: Final = 4 * 2**20
# Records per read, if the filter needs their requests.
CHUNK: Final = 100
# A read gets this many extra ids, since the first may be the cursor's own and newer ones of its millisecond.
SAME_MS: Final = 16


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Conditions on runs, all of which must match; an empty one matches every run.

    Attributes:
        model: the model of the run or of one of its stages.
        text: a prefix of the id, or a part of the prompt's excerpt or of a metadata value, in any case.
        metadata: metadata keys and their values.
        user: the run's user; such a search reads only that user's runs.
    """

    statuses: frozenset[RunStatus] = frozenset()
    model: str = ""
    text: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    @property
    def needs_requests(self) -> bool:
        """Returns whether the filter needs more than status and model."""
        return bool(self.text or self.metadata)

    def may_match(self, status: str, model: str) -> bool:
        """Returns whether a run with this status and model may match."""
        return not (self.statuses and status not in self.statuses) and not (self.model and not self._is_model(model))

    def matches(self, run: RunRecord) -> bool:
        """Returns whether the run matches."""
        if not self.may_match(run.status, run.model) or (self.user and run.user != self.user):
            return False
        metadata = run.request.get("metadata", {})
        if any(metadata.get(key) != value for key, value in self.metadata.items()):
            return False
        text = self.text.casefold()
        return not text or any(text in part.casefold() for part in _texts(run)) or run.run_id.startswith(text.upper())

    def _is_model(self, model: str) -> bool:
        models = parse_models(model)
        return self.model == model or (isinstance(models, dict) and self.model in models.values())


def _texts(run: RunRecord) -> Iterator[str]:
    yield excerpt_of(run.request)
    yield from run.request.get("metadata", {}).values()


EVERY_RUN: Final = RunFilter()


class RunPage(NamedTuple):
    """Runs, newest first, and the id after which the next page continues."""

    runs: list[RunRecord]
    next_id: str | None


async def list_runs(
    redis: Redis, owner: RunOwner, limit: int, before_id: str | None = None, wanted: RunFilter = EVERY_RUN
) -> RunPage:
    """Lists an owner's matching runs that are older than `before_id`, newest first.

    Returns:
        At most `limit` runs; fewer with a `next_id` if the search reached the limits of one page.
    """
    if owner.user is not None:
        if wanted.user not in ("", owner.user):
            return RunPage([], None)
        wanted = replace(wanted, user=owner.user)
    is_search = wanted != replace(EVERY_RUN, user=wanted.user)
    examined_max = EXAMINED_MAX if is_search else limit + 1
    run_ids = await _read_ids(redis, owner.tenant, wanted.user, before_id, examined_max)
    candidates = await _read_candidates(redis, run_ids[:examined_max], wanted)
    readable = _within(candidates, READ_MAX_BYTES)
    found: list[RunRecord] = []
    at_once = CHUNK if wanted.needs_requests else limit + 1
    for at in range(0, len(readable), at_once):
        found += [run for run in await _read_runs(redis, readable[at : at + at_once]) if wanted.matches(run)]
        if len(found) > limit:
            return RunPage(found[:limit], found[limit - 1].run_id)
    if len(readable) < len(candidates):
        return RunPage(found, readable[-1])
    return RunPage(found, run_ids[examined_max - 1] if len(run_ids) > examined_max else None)


async def _read_ids(redis: Redis, tenant: str, user: str, before_id: str | None, examined_max: int) -> list[str]:
    """Reads ids from the cursor on: up to `examined_max`, and one more to tell whether the list continues."""
    indexes = [partition.runs(tenant, user) for partition in partitioning_of(redis).partitions]
    parts = await asyncio.gather(*(_read_index(redis, index, before_id, examined_max) for index in indexes))
    return sorted((run_id for part in parts for run_id in part), reverse=True)[: examined_max + 1]


async def _read_index(redis: Redis, index: str, before_id: str | None, examined_max: int) -> list[str]:
    """Reads ids of one partition in the same way."""
    # Ids sort by time, as scores do, so the cursor's place is found by its time even if that run is gone.
    high = "+inf" if before_id is None else str(ids.created_ms(before_id))
    count = examined_max + SAME_MS
    run_ids: list[str] = []
    offset = 0
    while len(run_ids) <= examined_max:
        found = await redis.zrevrangebyscore(index, high, "-inf", start=offset, num=count)
        run_ids += [run_id for run_id in map(bytes.decode, found) if before_id is None or run_id < before_id]
        if len(found) < count:
            break
        offset += count
    return run_ids[: examined_max + 1]


def _is_no_record(reply: Any) -> bool:
    """Returns whether the key is not a record. One bad key must not fail the whole list."""
    if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
        raise reply
    return isinstance(reply, Exception)


async def _read_candidates(redis: Redis, run_ids: Sequence[str], wanted: RunFilter) -> dict[str, int]:
    """Returns the request sizes of the runs whose status and model match."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), ["status", "model"])
            pipe.hstrlen(keys.run(run_id), "request")
        replies = await pipe.execute(raise_on_error=False)
    heads = [head for head in zip(run_ids, replies[::2], replies[1::2], strict=True) if not _is_no_record(head[1])]
    return {
        run_id: size
        for run_id, (status, model), size in heads
        if status is not None and wanted.may_match(status.decode(), (model or b"").decode())
    }


def _within(sizes: Mapping[str, int], max_bytes: int) -> list[str]:
    """Returns the longest prefix that fits, at least one run."""
    totals = accumulate(sizes.values())
    return [
        run_id for at, (run_id, total) in enumerate(zip(sizes, totals, strict=True)) if not at or total <= max_bytes
    ]


async def _read_runs(redis: Redis, run_ids: Sequence[str]) -> list[RunRecord]:
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hgetall(keys.run(run_id))
        records = await pipe.execute()
    runs = (decode_run(run_id, record) for run_id, record in zip(run_ids, records, strict=True))
    return [run for run in runs if run is not None]
