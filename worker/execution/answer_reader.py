"""Reads the decisions on a run's calls and their results, and stores those that the worker makes itself."""

import asyncio
from collections.abc import Collection
from functools import partial

from stagebus.shared.domain import call_results, decisions
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.decisions import Decision
from stagebus.shared.domain.polled_task import PolledTask
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis, read_time_ms, time_reply_ms
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.store import parking, task_polls
from stagebus.shared.store.parking import Seen
from stagebus.worker.stages.answer_source import AnswerSnapshot
from stagebus.worker.tools.tool_results import Deferred, RemoteTask


class AnswerReader:
    """The answers that come from outside for one round of calls.

    Waits while Redis is down, because other calls of the stage may still run.
    """

    def __init__(self, redis: Redis, run_id: str, ref: str, decided: asyncio.Event, worker: str = "") -> None:
        """Creates the reader of one round.

        Args:
            ref: the id of the event that completed the model's answer with the calls.
            decided: set whenever a decision or a result may have been stored.
            worker: this worker's name, for the tasks that it begins.
        """
        self._worker = worker
        self._redis = redis
        self._run_id = run_id
        self._ref = ref
        self._decided = decided
        self._name = f"run {run_id}: its decisions and results"

    async def read(self, call_ids: Collection[str] = ()) -> AnswerSnapshot:
        """Returns all decisions stored so far, and the results and leases of these calls."""
        return await retry_while_redis_is_down(partial(self._read, list(call_ids)), self._name)

    async def expire(self, call_id: str) -> Decision:
        """Denies an expired call, unless a person was faster; returns the decision that counts."""
        return await retry_while_redis_is_down(partial(self._expire, call_id), self._name)

    async def deliver(self, call_id: str, result: CallResult) -> CallResult:
        """Stores the result of a call, unless it has one; returns the result that counts."""
        deliver = partial(parking.deliver, self._redis, self._run_id, self._ref, call_id, result)
        return await retry_while_redis_is_down(deliver, self._name)

    async def keep_task(self, call_id: str, task: RemoteTask, wait_s: float) -> None:
        """Stores the task that a call has become; a worker then asks for its result for `wait_s`."""
        await retry_while_redis_is_down(partial(self._keep_task, call_id, task, wait_s), self._name)

    async def find_task(self, call_id: str) -> Deferred | None:
        """Returns the wait for the task that an earlier attempt at the call has stored, if there is one."""
        find = partial(task_polls.find, self._redis, self._run_id, self._ref, call_id)
        task = await retry_while_redis_is_down(find, self._name)
        if task is None:
            return None
        now_ms = await retry_while_redis_is_down(partial(read_time_ms, self._redis), self._name)
        return Deferred(expires_in=max(task.expires_at - now_ms, 1) / 1000)

    async def wait_for_change(self) -> None:
        """Returns when another `read` may find more."""
        await self._decided.wait()
        self._decided.clear()

    async def _read(self, call_ids: list[str]) -> AnswerSnapshot:
        fields = [call_results.result_field(self._ref, call_id) for call_id in call_ids]
        fields += [call_results.lease_field(self._ref, call_id) for call_id in call_ids]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.run(self._run_id), ["decisions", "news"])
            pipe.time()
            if fields:
                pipe.hmget(keys.results(self._run_id), fields)
            (stored, news), time, *replies = await pipe.execute()
        results = replies[0][: len(call_ids)] if replies else []
        leases = replies[0][len(call_ids) :] if replies else []
        return AnswerSnapshot(
            decisions.decode_all(stored),
            {call_id: call_results.decode(text) for call_id, text in zip(call_ids, results, strict=True) if text},
            {call_id: call_results.decode_lease(text) for call_id, text in zip(call_ids, leases, strict=True) if text},
            time_reply_ms(time),
            Seen(int(news or 0), len(stored or b"")),
        )

    async def _keep_task(self, call_id: str, task: RemoteTask, wait_s: float) -> None:
        now_ms = await read_time_ms(self._redis)
        polled = PolledTask(
            run_id=self._run_id,
            ref=self._ref,
            call_id=call_id,
            source=task.source,
            task_id=task.task_id,
            worker=self._worker,
            began_at=now_ms,
            expires_at=now_ms + round(1000 * wait_s),
        )
        await task_polls.keep(self._redis, polled, task.poll_s)

    async def _expire(self, call_id: str) -> Decision:
        expired = decisions.encode(decisions.EXPIRED)
        return decisions.decode(await parking.decide(self._redis, self._run_id, call_id, expired))
