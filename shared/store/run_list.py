"""A tenant's runs, newest first, in pages; those of them that are wanted.

Redis has no index but the time, so a search looks at records one after the other. How many
it looks at for one page is bounded, by number and by bytes: a page may be short, or empty,
and yet name the id after which the search goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from stagebus.shared.domain import ids
from stagebus.shared.domain.requests import parse_models, prompt_excerpt
from stagebus.shared.domain.runs import RunRecord, RunStatus, decode_run
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis

# What one page may cost at the most: runs looked at, and bytes of requests read for it.
LOOKED_AT_MAX: Final = 500
READ_MAX_BYTES: Final = 4 * 2**20
# Records that are read at once where each has to be looked into.
CHUNK: Final = 100
# Of the ids that come at once, so many may be the cursor's own and newer ones of its millisecond.
SAME_MS: Final = 16


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are wanted; what is empty asks for nothing.

    Attributes:
        model: of the run, or of one of its stages.
        text: how the id begins, or a part of the prompt's excerpt or of a value of the metadata, in any case.
        metadata: these values under these keys.
    """

    statuses: frozenset[RunStatus] = frozenset()
    model: str = ""
    text: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def looks_into_requests(self) -> bool:
        """Whether status and model alone do not tell."""
        return bool(self.text or self.metadata)

    def may_want(self, status: str, model: str) -> bool:
        """Whether a run with these may be wanted."""
        return not (self.statuses and status not in self.statuses) and not (self.model and not self._is_model(model))

    def wants(self, run: RunRecord) -> bool:
        """Whether the run is wanted."""
        if not self.may_want(run.status, run.model):
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
    yield prompt_excerpt(run.request.get("messages", []))
    yield from run.request.get("metadata", {}).values()


EVERY_RUN: Final = RunFilter()


class RunPage(NamedTuple):
    """Runs newest first, and the id after which the next page goes on."""

    runs: list[RunRecord]
    next_id: str | None


async def list_runs(
    redis: Redis, tenant: str, limit: int, before_id: str | None = None, wanted: RunFilter = EVERY_RUN
) -> RunPage:
    """The wanted ones of a tenant's runs, newest first, older than `before_id`.

    Returns:
        At most `limit`; fewer with a `next_id` where the search went as far as one page may.
    """
    looked_at_max = limit + 1 if wanted == EVERY_RUN else LOOKED_AT_MAX
    run_ids = await _read_ids(redis, tenant, before_id, looked_at_max)
    candidates = await _read_candidates(redis, run_ids[:looked_at_max], wanted)
    readable = _within(candidates, READ_MAX_BYTES)
    found: list[RunRecord] = []
    at_once = CHUNK if wanted.looks_into_requests else limit + 1
    for at in range(0, len(readable), at_once):
        found += [run for run in await _read_runs(redis, readable[at : at + at_once]) if wanted.wants(run)]
        if len(found) > limit:
            return RunPage(found[:limit], found[limit - 1].run_id)
    if len(readable) < len(candidates):
        return RunPage(found, readable[-1])
    return RunPage(found, run_ids[looked_at_max - 1] if len(run_ids) > looked_at_max else None)


async def _read_ids(redis: Redis, tenant: str, before_id: str | None, looked_at_max: int) -> list[str]:
    """The ids from the cursor on: as many as may be looked at, and one more if there is one."""
    # Ids sort by time as scores do, so the run at the cursor is found by its score even when it is gone.
    high = "+inf" if before_id is None else str(ids.created_ms(before_id))
    count = looked_at_max + SAME_MS
    run_ids: list[str] = []
    offset = 0
    while len(run_ids) <= looked_at_max:
        found = await redis.zrevrangebyscore(keys.runs(tenant), high, "-inf", start=offset, num=count)
        run_ids += [run_id for run_id in map(bytes.decode, found) if before_id is None or run_id < before_id]
        if len(found) < count:
            break
        offset += count
    return run_ids[: looked_at_max + 1]


def _is_no_record(reply: Any) -> bool:
    """Whether something else stands in a record's place: it must not cost the others theirs in the list."""
    if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
        raise reply
    return isinstance(reply, Exception)


async def _read_candidates(redis: Redis, run_ids: Sequence[str], wanted: RunFilter) -> dict[str, int]:
    """The size of each request of those whose status and model are wanted."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id in run_ids:
            pipe.hmget(keys.run(run_id), ["status", "model"])
            pipe.hstrlen(keys.run(run_id), "request")
        replies = await pipe.execute(raise_on_error=False)
    heads = [head for head in zip(run_ids, replies[::2], replies[1::2], strict=True) if not _is_no_record(head[1])]
    return {
        run_id: size
        for run_id, (status, model), size in heads
        if status is not None and wanted.may_want(status.decode(), (model or b"").decode())
    }


def _within(sizes: Mapping[str, int], max_bytes: int) -> list[str]:
    """As many of the first ones as fit, at least one."""
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
