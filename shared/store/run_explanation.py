"""Reads what is known of a run, and explains it: what has happened, what it waits for, and what would move it."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import CallDeferred
from stagebus.shared.domain.limits import own_limit
from stagebus.shared.domain.runs import RUN_STAGE, TOOLS, RunRecord
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.log.run_outlook import Outlook, find_outlook
from stagebus.shared.log.run_situation import Bounds, LiveWorker, ProviderLoad, QueueFacts, Situation
from stagebus.shared.log.run_story import StoryLine, tell_story
from stagebus.shared.storage import keys
from stagebus.shared.storage.partition_keys import Partition, partition_of_run
from stagebus.shared.storage.redis_client import Redis, time_reply_ms
from stagebus.shared.store import approvals
from stagebus.shared.store.heartbeats import LiveProcess, read_live_processes

# The last tools stage is read up to here; what follows is mostly the progress of calls.
TOOL_EVENTS_MAX: Final = 2000


class Explanation(NamedTuple):
    """A run's record, its story, and its present."""

    run: RunRecord
    story: list[StoryLine]
    outlook: Outlook


async def explain_run(
    redis: Redis, settings: Settings, run: RunRecord, slots_by_provider: Mapping[str, int | None]
) -> Explanation:
    """Explains a run.

    Args:
        slots_by_provider: how many requests a provider takes at a time; None or absent: any number.
    """
    events = await _read_events(redis, run.run_id)
    bounds = Bounds(
        settings.lease_s, settings.poll_s, settings.sweep_s, settings.queue_wait_max_s, settings.run_tries_max
    )
    situation = Situation(
        run,
        events,
        [ask for ask in await approvals.read_pending(redis, run) if not isinstance(ask, CallDeferred)],
        await _read_queue_facts(redis, settings, run, slots_by_provider),
        bounds,
    )
    return Explanation(run, tell_story(run, events), find_outlook(situation))


async def _read_events(redis: Redis, run_id: str) -> list[StoredEvent]:
    """Reads the events that tell where a run is, in order: all but the output of models and of earlier tools stages."""
    head = await log_reader.read_head(redis, run_id)
    stage_ids = [stage_id for stage_id in head.stage_ids if stage_id != RUN_STAGE]
    ends = await log_reader.read_stage_ends(redis, run_id, stage_ids)
    found = {event.id: event for both in ends for event in both}
    whole = [RUN_STAGE, *[stage_id for stage_id in stage_ids if stage_id.startswith(TOOLS)][-1:]]
    for stage_id in whole:
        async for page in log_reader.stage_pages(redis, run_id, stage_id, TOOL_EVENTS_MAX):
            found |= {event.id: event for event in page}
            break
    return sorted(found.values(), key=lambda event: event.event_id)


async def _read_queue_facts(
    redis: Redis, settings: Settings, run: RunRecord, slots_by_provider: Mapping[str, int | None]
) -> QueueFacts:
    workers = await read_live_processes(redis, keys.WORKERS)
    provider = _awaited_provider(workers, run)
    partition = partition_of_run(redis, run.run_id)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zscore(partition.queue, run.run_id)
        pipe.pttl(partition.lease(run.run_id))
        pipe.zlexcount(partition.running, f"[{run.tenant} ", f"({run.tenant}!")  # type: ignore[no-untyped-call]
        pipe.hget(partition.limits, f"{run.tenant}:runs_running")
        held, waiting, *_ = keys.provider_slots(provider)
        pipe.zcard(held)
        pipe.zcard(waiting)
        time, score, lease_ms, running, limit, slots_held, requests_waiting = await pipe.execute()
    now_ms = time_reply_ms(time)
    thread_active, line = await _read_line(redis, run)
    load = ProviderLoad(provider, slots_held, requests_waiting, slots_by_provider.get(provider)) if provider else None
    return QueueFacts(
        now=now_ms,
        score=score,
        lease_left_ms=lease_ms,
        ahead=await _count_ahead(redis, partition, score, now_ms),
        workers=[_live_worker(worker) for worker in workers],
        provider=load,
        tenant_running=running,
        tenant_running_max=own_limit(limit, settings.tenant_runs_running),
        thread_active=thread_active,
        line=line,
    )


async def _read_line(redis: Redis, run: RunRecord) -> tuple[str, list[str]]:
    """Reads which run has the turn in this run's thread, and which ones wait for it, in order."""
    if not run.thread_key:
        return "", []
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hget(run.thread_key, "active")
        pipe.lrange(keys.thread_line(run.thread_key), 0, -1)
        active, line = await pipe.execute()
    return (active or b"").decode(), [run_id.decode() for run_id in line]


async def _count_ahead(redis: Redis, partition: Partition, score: float | None, now_ms: int) -> int:
    """Counts the due runs that a worker takes before the one with this score: those that have begun come first."""
    if score is None or score > now_ms:
        return 0
    if score >= keys.TIME_SCORE_MIN:
        return int(await redis.zcount(partition.queue, keys.TIME_SCORE_MIN, f"({score:.0f}"))
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zcount(partition.queue, keys.TIME_SCORE_MIN, now_ms)
        pipe.zcount(partition.queue, "-inf", f"({score:.0f}")
        return sum(await pipe.execute())


def _awaited_provider(workers: list[LiveProcess], run: RunRecord) -> str:
    """Returns the provider that the run's worker says it waits for; empty if there is none."""
    states: list[dict[str, Any]] = [worker.state for worker in workers if worker.name == run.worker]
    held = [held for state in states for held in state["runs"] if held["id"] == run.run_id]
    return str(held[0].get("waits_for_provider", "")) if held else ""


def _live_worker(worker: LiveProcess) -> LiveWorker:
    state = worker.state
    return LiveWorker(worker.name, state["concurrency"], len(state["runs"]), bool(state.get("draining")))
