"""The tasks at tool servers that calls have become, and when a worker asks for the state of each.

The run is parked meanwhile and knows nothing of the looks. Any worker with a connection to the server may look, one at a
time; the one that began the task has the first right to.
"""

from typing import Final, NamedTuple

from stagebus.shared.domain import call_results
from stagebus.shared.domain.polled_task import PolledTask
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis, read_time_ms, time_reply_ms

# A look ends long before its lease, so another worker looks only if this one died.
LEASE_S: Final = 60.0
# A task is left to the worker that began it for this time after it is due.
GRACE_S: Final = 3.0
# The set of a source that is not used any more is kept for this time after its last task was added.
KEPT_S: Final = round(call_results.EXPIRES_IN_MAX_S) + 86_400

_ACQUIRE: Final = Script("task_acquire")
_KEEP: Final = Script("task_keep")


class DueTasks(NamedTuple):
    """Tasks that this worker looks at now, and the seconds until further ones may be due; None if there are none."""

    tasks: list[PolledTask]
    next_s: float | None


class TaskState(NamedTuple):
    """The state of a task's call: `is_wanted`, it still waits for its result; `now_ms` by Redis's clock."""

    is_wanted: bool
    now_ms: int


async def keep(redis: Redis, task: PolledTask, poll_s: float | None) -> None:
    """Stores a task that has begun, for its first look.

    Args:
        poll_s: the interval that the server asks for.
    """
    key = keys.polled_tasks(task.source)
    # This one first: a task that is looked at gives its call a result, even if no attempt learns of the task.
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zadd(key, {task.encode(): task.next_look_at(task.began_at, poll_s)})
        pipe.expire(key, KEPT_S)
        await pipe.execute()
    field = call_results.task_field(task.ref, task.call_id)
    await _KEEP(redis, [keys.run(task.run_id), keys.results(task.run_id)], [field, task.encode()])


async def find(redis: Redis, run_id: str, ref: str, call_id: str) -> PolledTask | None:
    """Returns the task that an earlier attempt at a call has begun, if it is known."""
    text = await redis.hget(keys.results(run_id), call_results.task_field(ref, call_id))  # type: ignore[misc]
    return None if text is None else PolledTask.decode(text)


async def acquire(redis: Redis, source: str, worker: str, limit: int) -> DueTasks:
    """Takes up to `limit` tasks of a source that are due, for one look at each within `LEASE_S`."""
    args = [worker, round(LEASE_S * 1000), round(GRACE_S * 1000), limit]
    now_ms, next_ms, *tasks = await _ACQUIRE(redis, [keys.polled_tasks(source)], args)
    next_s = None if next_ms < 0 else max(next_ms - now_ms, 0) / 1000
    return DueTasks([PolledTask.decode(task) for task in tasks], next_s)


async def read_state(redis: Redis, task: PolledTask) -> TaskState:
    """Returns whether a task's call still waits for its result."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.run(task.run_id), ["created_at", "finished_at", "cancel"])
        pipe.hexists(keys.results(task.run_id), call_results.result_field(task.ref, task.call_id))
        pipe.time()
        (created_at, finished_at, cancel), has_result, time = await pipe.execute()
    return TaskState(bool(created_at) and not (finished_at or cancel or has_result), time_reply_ms(time))


async def postpone(redis: Redis, task: PolledTask, next_look_at: int) -> None:
    """Sets the time of the next look, Unix ms."""
    await redis.zadd(keys.polled_tasks(task.source), {task.encode(): next_look_at}, xx=True)


async def drop(redis: Redis, task: PolledTask) -> None:
    """Ends the looks at a task."""
    await redis.zrem(keys.polled_tasks(task.source), task.encode())


async def make_due(redis: Redis, run_id: str) -> list[PolledTask]:
    """Makes all tasks of a run due, so that those of a run that has ended are cancelled at once; returns them."""
    names = await redis.hkeys(keys.results(run_id))  # type: ignore[misc]
    fields = [name for name in names if call_results.is_task_field(name)]
    if not fields:
        return []
    texts = await redis.hmget(keys.results(run_id), fields)  # type: ignore[misc]
    tasks = [PolledTask.decode(text) for text in texts if text is not None]
    now_ms = await read_time_ms(redis)
    for task in tasks:
        await postpone(redis, task, now_ms)
    return tasks
