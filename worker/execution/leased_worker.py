"""Arq's Worker with leases: Lua scripts decide by Redis's clock which worker holds a run.

Arq supplies the jobs, their keys, the functions, and the start and stop of a process. These of its
inner methods (arq 0.28) are replaced, because its own cannot carry long jobs on many workers:

    main               one failed poll would end the worker and cancel all of its jobs;
                       held jobs would stay at the head of what is polled
    finish_job         is not fenced: a worker that wakes late would delete another worker's job
    finish_failed_job  drops the job and would strand its run
    handle_sig         cancels all jobs immediately

The outcome of a job takes one way: the job's function or `finish_failed_job` stores it in `_Job`, and
`_settle` applies it to the queue after arq's `run_job` returned.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from signal import Signals
from typing import Any, Final

from arq.connections import ArqRedis
from arq.utils import timestamp_ms
from arq.worker import Worker, func

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.connections import SharedConnection
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.storage.redis_retry import RETRY_BACKOFF_S, retry_while_redis_is_down
from stagebus.shared.store import parking, run_queue
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.execution.run_acquirer import RenewNow, RunAcquirer

logger = logging.getLogger(__name__)

HEALTH_S: Final = 30


@dataclass
class _Job:
    """A run in a slot: the token of its lease, and its outcome. Without one, the work failed unexpectedly."""

    token: str
    outcome: Outcome | None = None


def _arq_pool(redis: Redis, queue_name: str) -> ArqRedis:
    """Returns the client for arq's own commands: the jobs, a count of tries beside each, and the worker's health."""
    if isinstance(redis, ClusterRedis):
        return redis  # type: ignore[return-value]  # of ArqRedis's own methods none is used
    return ArqRedis(
        redis.connection_pool,
        job_serializer=run_queue.encode_job,
        job_deserializer=run_queue.decode_job,
        default_queue_name=queue_name,
    )


class LeasedWorker(Worker):
    """Acquires due runs, as many as it has slots, and hands each to `run`."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        *,
        connection: SharedConnection,
        run: Callable[[str, str, str], Awaitable[Outcome]],
        renew_now: RenewNow,
        on_drain: Callable[[], Awaitable[None]],
    ) -> None:
        """Create it in the event loop that runs it.

        Args:
            connection: for the queue's scripts.
            run: works on a run id under a lease's token; the third argument is the key of the run's thread, or empty.
            renew_now: renews the held leases, or those of the runs for which its argument returns True; called when Redis
                is back after an outage.
            on_drain: asks all held runs to give themselves back, and returns.
        """
        self._partitioning = partitioning_of(redis)
        # arq counts its entries for its log, and does nothing else with it.
        queue_name = self._partitioning.partitions[0].queue
        super().__init__(
            [func(self._run_toolchain, name=run_queue.FUNCTION, max_tries=2**31)],  # type: ignore[arg-type]
            redis_pool=_arq_pool(redis, queue_name),
            queue_name=queue_name,
            max_jobs=settings.worker_concurrency,
            job_timeout=None,  # type: ignore[arg-type]  # a run has its own
            keep_result=0,
            health_check_interval=HEALTH_S,
            job_serializer=run_queue.encode_job,
            job_deserializer=run_queue.decode_job,
            log_results=False,
        )
        self._redis = redis
        self._settings = settings
        self._connection = connection
        self._run = run
        self._renew_now = renew_now
        self._on_drain = on_drain
        self._jobs: dict[str, _Job] = {}
        self._draining = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._acquirer = RunAcquirer(
            redis, connection, settings, held=self.tasks, on_acquired=self._on_acquired, renew_now=renew_now
        )

    # --- the loop ------------------------------------------------------------

    async def main(self) -> None:
        """Acquires and runs jobs until the worker drains; survives every error of Redis."""
        polling = asyncio.create_task(self._poll_forever())
        draining = asyncio.create_task(self._draining.wait())
        await asyncio.wait({polling, draining}, return_when=asyncio.FIRST_COMPLETED)
        if polling.done():
            polling.result()  # raises: a worker that polls no longer must not live on
        await cancel_and_wait(polling, draining)
        await self._acquirer.stop()
        await self._on_drain()
        await self._acquirer.settle()
        if self.tasks:
            await asyncio.wait(self.tasks.values())

    def begin_drain(self) -> None:
        """Acquires no more runs and gives back the held ones; `main` returns after that."""
        logger.info("draining %d runs", len(self.tasks))
        self._draining.set()

    def handle_sig(self, signum: Signals) -> None:
        """Begins the drain on SIGTERM and SIGINT."""
        logger.info("received %s", Signals(signum).name)
        self.begin_drain()

    async def _poll_forever(self) -> None:
        step = self._poll
        while True:
            try:
                await step()
            except REDIS_AWAY as exc:
                OUTAGE.report_failure(logger, "the queue", exc)
            except Exception:
                # If this loop ended, the process would, and its runs with it.
                logger.exception("the queue could not be polled; trying again")
            else:
                step = self._poll
                continue
            step = self._recover
            await asyncio.sleep(RETRY_BACKOFF_S)

    async def _poll(self) -> None:
        """Acquires due runs, or waits until a slot is free or more runs may be due."""
        free_slots = self.max_jobs - len(self.tasks)
        if free_slots <= 0:
            self._slot_freed.clear()
            await self._slot_freed.wait()
        elif (pause_s := await self._acquirer.acquire_due(free_slots)) is not None:
            await self.heart_beat()
            await self._acquirer.wait(pause_s)

    async def _recover(self) -> None:
        """Waits until Redis is back and leases that expired meanwhile are renewed by the workers that hold the runs."""
        await retry_while_redis_is_down(self.pool.ping, "the queue", is_retryable=lambda _: True)
        await self._renew_now(lambda _: True)
        await asyncio.sleep(self._settings.lease_s / 3)

    # --- one job -------------------------------------------------------------

    async def _on_acquired(self, run_id: str, token: str) -> None:
        if self._draining.is_set():
            await queue_scripts.release(self._connection, run_id, token=token, attempt=None)
            await queue_scripts.admit(self._connection, run_id, self._settings.tenant_runs_running)
            return
        task = self.loop.create_task(self._run_job(run_id, token))
        self.tasks[run_id] = task
        task.add_done_callback(lambda _: self._free_slot(run_id))

    def _free_slot(self, run_id: str) -> None:
        del self.tasks[run_id]
        self._slot_freed.set()

    async def _run_job(self, run_id: str, token: str) -> None:
        job = self._jobs[run_id] = _Job(token)
        try:
            await self.run_job(self._partitioning.of_run(run_id).job_id(run_id), timestamp_ms())
            await self._settle(run_id, job)
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, f"run {run_id}: its job, whose lease expires", exc)
        except Exception:
            logger.exception("run %s: its job failed; its lease expires", run_id)
        finally:
            del self._jobs[run_id]

    async def _run_toolchain(self, _ctx: dict[Any, Any], run_id: str, thread_key: str = "") -> None:
        """The job's function. For arq every job completes: its words for others, such as "cancelled", would mislead."""
        job = self._jobs[run_id]
        job.outcome = await self._run(run_id, job.token, thread_key)

    async def finish_job(self, *_: Any, **__: Any) -> None:
        """Does nothing: `_settle` updates the queue."""

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:  # noqa: ARG002
        """Notes that arq cannot run the job: it expired, cannot be decoded or names an unknown function."""
        self._jobs[job_id.strip("{}")].outcome = Outcome(Disposition.REPLACE)

    async def _settle(self, run_id: str, job: _Job) -> None:
        """Applies the outcome to the queue. Each step is safe to repeat, and is repeated while Redis is down."""
        retry = partial(retry_while_redis_is_down, name=f"run {run_id}: its release")
        finish = partial(queue_scripts.finish, self._connection, run_id, job.token)
        admit = partial(queue_scripts.admit, self._connection, run_id, self._settings.tenant_runs_running)
        match job.outcome:
            case Outcome(Disposition.FINISH):
                await retry(finish)
            case Outcome(Disposition.REPLACE):
                if await retry(finish):
                    await run_queue.requeue(self._redis, run_id, await self._thread_of(run_id))
            case Outcome(Disposition.RETURNED):
                await retry(admit)
            case Outcome(Disposition.RELEASE | Disposition.PARK) as outcome:
                is_parked = outcome.disposition is Disposition.PARK
                logger.info(
                    "run %s: %s", run_id, "waits for somebody outside" if is_parked else "given back to the queue"
                )
                await retry(self._give_back_step(run_id, job.token, outcome))
                await retry(admit)
            case _:
                pass  # abandoned, or failed unexpectedly: then the lease expires, which counts as a try

    async def _thread_of(self, run_id: str) -> str:
        """Returns the key of a run's thread, which its next job names; empty if it is in none."""
        stored = await self._redis.hget(keys.run(run_id), "thread")  # type: ignore[misc]
        return stored.decode() if stored else ""

    def _give_back_step(self, run_id: str, token: str, outcome: Outcome) -> Callable[[], Awaitable[object]]:
        if outcome.parked is None or outcome.attempt is None:
            return partial(queue_scripts.release, self._connection, run_id, token=token, attempt=outcome.attempt)
        due_ms, seen = outcome.parked.due_ms, outcome.parked.seen
        return partial(
            parking.park, self._redis, run_id, token=token, attempt=outcome.attempt, due_ms=due_ms, seen=seen,
            tenant=outcome.tenant,
        )  # fmt: skip
