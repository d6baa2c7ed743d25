"""Lets the messages of waiting runs join the active run of their thread, between two of its stages."""

from collections.abc import Sequence

import orjson

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import Done, MergedInto, MessageAdded
from stagebus.shared.domain.runs import RUN_STAGE, RunRecord
from stagebus.shared.log import live_batch, sse
from stagebus.shared.runtime.clock import wall_ms
from stagebus.shared.storage import thread_scripts
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.run_scripts import AppendResult, LogEntry
from stagebus.shared.storage.thread_scripts import SteeringRun
from stagebus.shared.store import run_store
from stagebus.shared.store.thread_store import thread_of


async def read_steering(connection: ScriptConnection, run: RunRecord) -> Sequence[SteeringRun]:
    """Returns the runs that wait to join this one; none for a run without a thread, which costs nothing."""
    if not run.thread_key:
        return ()
    return await thread_scripts.list_steering(connection, run.thread_key, run.run_id)


async def join_run(
    redis: Redis,
    settings: Settings,
    run: RunRecord,
    joining: SteeringRun,
    *,
    attempt: int,
    last_id: EventId,
    before_stage: str,
) -> tuple[AppendResult, MessageAdded] | None:
    """Appends the messages of a waiting run to the active run's log, and ends the waiting run. Safe to repeat.

    Args:
        run: the active run.
        last_id: the end of its log, in which everything is that the attempt produced.
        before_stage: the stage before which the model gets the messages.

    Returns:
        The event and the log's end, or an end that shows the log to be behind; None if the run no longer waits.

    Raises:
        Fenced, RunEnded: the attempt may write nothing more.
    """
    thread = thread_of(run, settings)
    assert thread is not None, "only runs of threads are steered"
    messages = orjson.loads(joining.messages)
    added = MessageAdded(run_id=joining.run_id, before=before_stage, messages=messages, at=wall_ms())
    event_id = EventId(attempt, last_id.sequence + 1)
    frame = sse.encode(str(event_id).encode(), added.event.encode(), added.data())
    done = Done(merged_into=MergedInto(run_id=run.run_id, event_id=str(event_id)), at=wall_ms())
    appended = await thread_scripts.steer(
        redis,
        thread,
        attempt=attempt,
        before=last_id,
        added=LogEntry(RUN_STAGE, added.event, added.data()),
        message=live_batch.encode(last_id, event_id, [RUN_STAGE], [frame]),
        joining_id=joining.run_id,
        end=run_store.terminal_state_of(done, settings),
        done=done.data(),
    )
    if appended is None:
        return None
    if not appended.is_behind:
        await run_store.finalize(redis, settings, joining.run_id)
    return appended, added
