"""Arq's Worker with leases: who holds a run is decided by scripts, all by Redis's time.

Arq gives the job, its keys, the functions and the start and stop of a process. Of its inner
methods (arq 0.28) these are replaced, as its own cannot carry long jobs on many workers:

    main               one failed poll would end the worker and cancel all of its jobs;
                       held jobs would stay at the head of what is polled
    finish_job         was not fenced: a worker that wakes late deleted another's job
    finish_failed_job  dropped the job and so stranded its run
    handle_sig         cancelled all jobs at once
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from signal import Signals
from typing import Any, Final
from uuid import uuid4

from arq.connections import ArqRedis
from arq.utils import timestamp_ms
from arq.worker import RetryJob, Worker, func

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import Fenced
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.redis_client import REDIS_AWAY, is_passing
from stagebus.shared.store import parking, run_queue
from stagebus.worker.execution.doorbell import Doorbell
from stagebus.worker.execution.runner import Outcome

logger = logging.getLogger(__name__)

TAKE_AT_ONCE_MAX: Final = 64
AWAY_BACKOFF_S: Final = 0.2
AWAY_BACKOFF_MAX_S: Final = 1.0
HEALTH_S: Final = 30


class LeasedWorker(Worker):
    """Takes due runs, as many as it has slots for, and hands each to `run`."""

    def __init__(
        self,
        redis: ArqRedis,
        settings: Settings,
        *,
        connection: PipelinedConnection,
        run: Callable[[str, str], Awaitable[Outcome]],
        renew_now: Callable[[], Awaitable[None]],
        on_drain: Callable[[], Awaitable[None]],
    ) -> None:
        """Call in the event loop that runs it.

        Args:
            connection: the queue's scripts go over it.
            run: does the work of a run id under a lease's token.
            renew_now: renews what this worker holds; called when Redis is back.
            on_drain: gives the held runs back; returns when it has asked all.
        """
        super().__init__(
            [func(self._run_toolchain, name=run_queue.FUNCTION, max_tries=2**31)],  # type: ignore[arg-type]
            redis_pool=redis,
            queue_name=keys.QUEUE,
            max_jobs=settings.worker_concurrency,
            job_timeout=None,  # type: ignore[arg-type]  # a run has its own
            keep_result=0,
            health_check_interval=HEALTH_S,
            job_serializer=run_queue.encode_job,
            job_deserializer=run_queue.decode_job,
            log_results=False,
        )
        self._settings = settings
        self._connection = connection
        self._run = run
        self._renew_now = renew_now
        self._on_drain = on_drain
        self._doorbell = Doorbell(redis)
        self._tokens: dict[str, str] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._draining = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._rung: str | None = None  # the run that the bell rang for
        self._takings: set[asyncio.Task[bool]] = set()
        self._unsure: dict[str, str] = {}  # runs that may have been taken, by a token: Redis's answer has not come
        # Runs that Redis lets nobody take, since the last sleep: no reason to leave all others.
        self._refused: set[str] = set()
        self._passed_over = 0  # how many of those that are due this worker works on already, or cannot take

    # --- the loop ------------------------------------------------------------

    async def main(self) -> None:
        """Take runs until the worker drains; lives through every error of Redis."""
        backoff_s = AWAY_BACKOFF_S
        draining = asyncio.create_task(self._draining.wait())
        while not self._draining.is_set():
            turn = asyncio.create_task(self._turn(is_back=backoff_s > AWAY_BACKOFF_S))
            await asyncio.wait({turn, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                await cancel_and_wait(turn)
                break
            try:
                turn.result()
                backoff_s = AWAY_BACKOFF_S
                continue
            except REDIS_AWAY as exc:
                logger.warning("the queue waits for Redis: %s", exc)
            except Exception:
                # The process would end, and with it all runs that it holds.
                logger.exception("the queue could not be looked at; trying again")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, AWAY_BACKOFF_MAX_S)
        await self._drain()

    async def _turn(self, *, is_back: bool) -> None:
        """DecisionSnapshot for due runs, take them, and sleep until there may be more."""
        if is_back:
            # Leases may have run out while Redis was away: all who hold runs renew them first.
            await self.pool.ping()
            await self._renew_now()
            await asyncio.sleep(self._settings.lease_s / 3)
        free = self.max_jobs - len(self.tasks)
        if free <= 0:
            self._slot_freed.clear()
            await self._slot_freed.wait()
            return
        if self._unsure:
            await asyncio.gather(*map(self._take, list(self._unsure)[:free]))
            return
        rung, self._rung = self._rung, None
        limit = min(free, TAKE_AT_ONCE_MAX) + self._passed_over
        # One write. A bell that is heard means a free slot and nothing else that was due: its run passes nobody by.
        is_taken, due = await asyncio.gather(self._take(rung), queue_scripts.list_due(self._connection, limit))
        others = [run_id for run_id in due.run_ids if run_id not in self.tasks and run_id not in self._refused]
        self._passed_over = len(due.run_ids) - len(others)
        free -= is_taken
        if any(await asyncio.gather(*map(self._take, others[:free]))) or len(due.run_ids) >= limit or free <= 0:
            return
        self._refused.clear()
        await self.heart_beat()
        next_s = due.next_ms / 1000 if due.next_ms >= 0 else self._settings.poll_s
        poll_at = self.loop.time() + min(next_s, self._settings.poll_s)
        # Of a burst that was taken with one look the bells are still there: they wake nobody for long.
        while (rung := await self._doorbell.wait(poll_at - self.loop.time())) in self.tasks:
            pass
        self._rung = rung

    async def _take(self, run_id: str | None) -> bool:
        if not run_id or run_id in self.tasks:  # its lease ran out while this worker still works on it: left to others
            return False
        # Not cut where the turn is: whether a run was taken must be known, or it waits for the end of a lease.
        taking = self.loop.create_task(self._take_for_certain(run_id))
        self._takings.add(taking)
        taking.add_done_callback(self._takings.discard)
        return await asyncio.shield(taking)

    async def _take_for_certain(self, run_id: str) -> bool:
        token = self._unsure.setdefault(run_id, uuid4().hex)
        settings = self._settings
        try:
            is_taken = await queue_scripts.acquire(
                self._connection, run_id, token, settings.lease_s, settings.tenant_runs_running
            )
        except REDIS_AWAY as exc:
            if is_passing(exc):
                raise
            logger.exception("run %s cannot be taken", run_id)
            self._refused.add(run_id)
            is_taken = False
        if self._unsure.pop(run_id, None) is None or not is_taken:  # asked twice; the first answer counts
            return False
        if self._draining.is_set():
            await queue_scripts.release(self._connection, run_id, token=token, attempt=None)
            await queue_scripts.admit(self._connection, run_id, settings.tenant_runs_running)
        else:
            self._start(run_id, token)
        return True

    def _start(self, run_id: str, token: str) -> None:
        self._tokens[run_id] = token
        task = self.loop.create_task(self._run_job(run_id))
        self.tasks[run_id] = task
        task.add_done_callback(lambda _: self._free(run_id))

    def _free(self, run_id: str) -> None:
        del self.tasks[run_id]
        self._tokens.pop(run_id, None)
        self._outcomes.pop(run_id, None)
        self._slot_freed.set()

    async def _run_job(self, run_id: str) -> None:
        """Arq's run_job; what it could not put into Redis, the end of the lease puts right."""
        try:
            await self.run_job(run_id, timestamp_ms())
        except REDIS_AWAY as exc:
            logger.warning("run %s: Redis is away (%s); its lease runs out", run_id, exc)
        except Exception:
            logger.exception("run %s: its job failed; its lease runs out", run_id)

    # --- one job -------------------------------------------------------------

    async def _run_toolchain(self, _ctx: dict[Any, Any], run_id: str) -> None:
        """The job's function."""
        try:
            outcome = await self._run(run_id, self._tokens[run_id])
        except Fenced as exc:
            logger.warning("%s", exc)
            self._tokens.pop(run_id, None)  # not ours to finish or to give back
            raise RetryJob from exc
        self._outcomes[run_id] = outcome
        if not outcome.is_over:
            raise RetryJob

    async def finish_job(self, job_id: str, finish: bool, *_: Any) -> None:  # noqa: FBT001
        """Take the job of an ended run out of the queue, or give the run back."""
        token = self._tokens.get(job_id)
        outcome = self._outcomes.get(job_id)
        if token is None:
            return
        if outcome is None:
            return  # its work broke off in a way nobody foresaw: the lease runs out, which counts as a try
        if finish:
            await self._patiently(job_id, partial(queue_scripts.finish, self._connection, job_id, token))
            return
        if outcome.parked is None or outcome.attempt is None:
            give_back = partial(queue_scripts.release, self._connection, job_id, token=token, attempt=outcome.attempt)
        else:
            due_ms, seen = outcome.parked.due_ms, outcome.parked.seen
            give_back = partial(
                parking.park, self.pool, job_id, token=token, attempt=outcome.attempt, due_ms=due_ms, seen=seen
            )
        await self._patiently(job_id, give_back)
        await self._patiently(
            job_id, partial(queue_scripts.admit, self._connection, job_id, self._settings.tenant_runs_running)
        )

    async def _patiently(self, run_id: str, step: Callable[[], Awaitable[object]]) -> None:
        """Take a step that is safe to repeat, though Redis is away: a run that is left to its lease pays it with a try."""
        backoff_s = AWAY_BACKOFF_S
        while True:
            try:
                await step()
            except REDIS_AWAY as exc:
                if not is_passing(exc):
                    raise
                logger.warning("run %s: to let go of it waits for Redis: %s", run_id, exc)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, AWAY_BACKOFF_MAX_S)
            else:
                return

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:  # noqa: ARG002
        """A job that arq cannot run: expired, undecodable, unknown. The run gets a sound one."""
        token = self._tokens.get(job_id)
        if token is not None and await queue_scripts.finish(self._connection, job_id, token):
            await run_queue.requeue(self.pool, job_id, self._settings.live_ttl_s)

    # --- the end -------------------------------------------------------------

    def handle_sig(self, signum: Signals) -> None:
        """SIGTERM, SIGINT: take no more runs and give back those that are held."""
        logger.info("%s: draining %d runs", Signals(signum).name, len(self.tasks))
        self._draining.set()
        self._slot_freed.set()

    async def _drain(self) -> None:
        await self._doorbell.close()
        try:
            await run_queue.ring(self.pool, self._rung or "")  # the bell may have rung for this worker
        except REDIS_AWAY:
            logger.debug("Redis is away; other workers poll")
        await self._on_drain()
        await asyncio.gather(*self._takings, return_exceptions=True)
        # Once more, where the answer was lost; if Redis is away, the lease has to run out.
        await asyncio.gather(*map(self._take, list(self._unsure)), return_exceptions=True)
        if self.tasks:
            await asyncio.wait(self.tasks.values())
