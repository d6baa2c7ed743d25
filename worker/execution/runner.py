"""The runner: claims a run, lets its toolchain continue from where the log ends, and ends the run.

    claim ──▶ read the log ──▶ first stage that is not complete ──▶ … ──▶ done | cancel | error

A run gets exactly one terminal event, always its last.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.answer_finish import finish_reason_of
from stagebus.shared.domain.events import Cancel, Done, Error, Event
from stagebus.shared.domain.runs import RunRecord, RunStatus, decode_run
from stagebus.shared.errors import (
    AttemptsExhausted,
    Fenced,
    LogIncomplete,
    RunEnded,
    RunFailed,
    RunTimeout,
    StagebusError,
    TailLost,
)
from stagebus.shared.observability.spans import Span
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.connections import SharedConnection
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.storage.sharded_pubsub import ShardedChannels
from stagebus.shared.store import run_store
from stagebus.shared.store.thread_store import end_of
from stagebus.shared.thread_errors import TurnNotCome
from stagebus.worker.execution.attempt import Attempt, Interrupt
from stagebus.worker.execution.attempt_span import attempt_span
from stagebus.worker.execution.history import read_history
from stagebus.worker.execution.lease import LeaseKeeper
from stagebus.worker.execution.outcome import Disposition, Outcome
from stagebus.worker.execution.pipeline import total_usage
from stagebus.worker.execution.task_poller import TaskPoller
from stagebus.worker.execution.thread_run import read_out
from stagebus.worker.execution.token_budget import TokenBudget
from stagebus.worker.execution.toolchain import Toolchain
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.stages.answer_source import Parked
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.worker_metrics import WorkerMetrics

logger = logging.getLogger(__name__)

RECLAIM_PAUSE_S: Final = 0.5
# A log that loses its tail this often in one worker's hands accepts nothing more, and each new claim pays for
# another request to a provider.
TAIL_LOSSES_MAX: Final = 10
INTERNAL_ERROR: Final = "an internal error; the worker's log has its cause"


class Runner:
    """Executes the runs that this worker has acquired."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        *,
        connection: SharedConnection,
        worker: str,
        model: ModelClient,
        tools: ToolRegistry,
        keeper: LeaseKeeper,
        channels: Channels | ShardedChannels,
        metrics: WorkerMetrics,
        tasks: TaskPoller | None = None,
    ) -> None:
        """`tasks` is told of runs that ended before their calls did."""
        self._redis = redis
        self._tasks = tasks
        self._connection = connection
        self._settings = settings
        self._worker = worker
        self._model = model
        self._tools = tools
        self._keeper = keeper
        self._channels = channels
        self._metrics = metrics
        metrics.watch_runs(lambda: len(self._attempts))
        self._attempts: set[Attempt] = set()
        self._is_draining = False

    async def run(self, run_id: str, token: str, thread_key: str = "") -> Outcome:
        """Works on the run until it ends, has to be given back, or another attempt owns it.

        Args:
            thread_key: the thread that the run's job names.
        """
        try:
            return await self._work_until_outcome(run_id, token, thread_key)
        except RunEnded:
            await self._end_tasks(run_id)
            return await self._account(run_id)
        except TurnNotCome:
            return Outcome(Disposition.RETURNED)
        except Fenced as exc:
            logger.warning("%s", exc)
            self._metrics.lease_lost()
            return Outcome(Disposition.ABANDON)

    async def _work_until_outcome(self, run_id: str, token: str, thread_key: str) -> Outcome:
        """Claims the run again, and continues from its log, whenever Redis lost data or was down.

        Raises:
            RunEnded: the run ended meanwhile.
            Fenced: another attempt owns the run.
            TurnNotCome: the run waits for its turn in its thread.
        """
        tail_losses = 0
        while True:
            try:
                return await self._claim_and_work(run_id, token, thread_key)
            except (RunEnded, Fenced, TurnNotCome):
                raise
            except Exception as exc:  # noqa: BLE001 - `_fatal_error` logs what is unexpected
                tail_losses += isinstance(exc, TailLost)
                error = _fatal_error(run_id, exc, tail_losses)
                if error is not None:
                    return await self._end_broken(run_id, token, thread_key, error)
                if isinstance(exc, TailLost):
                    logger.warning("run %s: %s; claiming it again", run_id, exc)
                else:
                    OUTAGE.report_failure(logger, f"run {run_id}: its next claim", exc)
            if tail_losses > 1:
                await asyncio.sleep(RECLAIM_PAUSE_S)
            await self._reacquire(run_id, token)

    async def _end_broken(self, run_id: str, token: str, thread_key: str, event: Error) -> Outcome:
        """Ends a run that cannot be executed; this needs nothing but a claim."""

        async def claim_and_end() -> bool:
            await self._reacquire(run_id, token)
            claim = await self._claim(self._redis, run_id, token, thread_key)
            return await run_store.end_claimed(self._redis, self._settings, run_id, claim, event)

        while not await retry_while_redis_is_down(claim_and_end, f"run {run_id}: its end"):
            logger.debug("run %s: its log lost its tail; claiming it again", run_id)
        self._metrics.run_ended(RunStatus.FAILED)
        return Outcome(Disposition.FINISH)

    async def _claim(self, connection: ScriptConnection, run_id: str, token: str, thread_key: str) -> Claim:
        has_webhooks = self._settings.has_webhooks
        claim = await run_scripts.claim(
            connection, run_id, self._worker, token=token, thread_key=thread_key, has_webhooks=has_webhooks
        )
        assert claim is not None, "a claim that includes held runs always succeeds or raises"
        return claim

    async def _reacquire(self, run_id: str, token: str) -> None:
        """Makes sure that this worker has the lease, so that the next claim takes the run from no other worker.

        Raises:
            Fenced: another worker has it.
        """
        settings = self._settings
        acquire = partial(
            queue_scripts.acquire, self._redis, run_id, token, settings.lease_s, settings.tenant_runs_running
        )
        if not await retry_while_redis_is_down(acquire, f"run {run_id}: its lease"):
            raise Fenced(run_id, 0)

    def held(self) -> list[tuple[str, int]]:
        """Returns the runs at work, each with its attempt."""
        return [(attempt.run_id, attempt.number) for attempt in self._attempts]

    @property
    def is_draining(self) -> bool:
        """Returns whether this worker acquires no further run and gives its runs back."""
        return self._is_draining

    def begin_drain(self) -> None:
        """Gives every run back at its next safe point."""
        self._is_draining = True
        for attempt in self._attempts:
            attempt.draining.set()

    def give_back_now(self) -> None:
        """Gives every run back immediately."""
        for attempt in self._attempts:
            attempt.stop(Interrupt.DRAIN)

    async def _claim_and_work(self, run_id: str, token: str, thread_key: str) -> Outcome:
        claim = await self._claim(self._connection, run_id, token, thread_key)
        run = decode_run(run_id, claim.record)
        assert run is not None, "a claimed run has a record"
        with attempt_span(claim, run, self._worker, with_content=self._settings.otel_content) as span:
            outcome = await self._work(claim, run, token, span)
            span.set({"stagebus.attempt.outcome": outcome.disposition.value})
            return outcome

    async def _work(self, claim: Claim, run: RunRecord, token: str, span: Span) -> Outcome:
        run_id = run.run_id
        history = await read_history(self._redis, run_id, claim.stage_ids)
        async with self._open_attempt(claim, run, token) as attempt:
            toolchain = Toolchain(
                run,
                attempt,
                history,
                redis=self._redis,
                settings=self._settings,
                model=self._model,
                tools=self._tools,
                metrics=self._metrics,
            )
            result = await self._work_to_end(run, claim, attempt, toolchain)
            if isinstance(result, Outcome):
                await attempt.producer.flush()
                return result
            usage = total_usage(toolchain.completed)
            if attempt.cut_usage is not None:
                usage += attempt.cut_usage
            if isinstance(result, Cancel | Error) and usage.total_tokens:
                result = result.model_copy(update={"usage": usage})
            end = run_store.terminal_state_of(
                result,
                self._settings,
                usage,
                finish_reason_of(toolchain.stages(), result),
                end_of(run, self._settings, out=await read_out(self._redis, attempt) if run.thread_key else b""),
            )
            attempt.producer.put(result, end)
            await attempt.producer.flush()
        self._metrics.run_ended(end.status)
        _note_end(span, result, end.status)
        if isinstance(result, Cancel | Error):
            await self._end_tasks(run_id)
        return await self._account(run_id)

    async def _end_tasks(self, run_id: str) -> None:
        if self._tasks is not None:
            await self._tasks.end_tasks(run_id)

    async def _account(self, run_id: str) -> Outcome:
        try:
            await run_store.finalize(self._redis, self._settings, run_id)
        except REDIS_AWAY:
            logger.info("run %s has ended; the sweep completes its accounting", run_id)
        return Outcome(Disposition.FINISH)

    @asynccontextmanager
    async def _open_attempt(self, claim: Claim, run: RunRecord, token: str) -> AsyncIterator[Attempt]:
        """Context manager: an attempt whose producer runs, lease is renewed and control channel is subscribed."""
        on_appended = self._metrics.appended if self._settings.worker_metrics_port else None
        budget = TokenBudget(self._connection, run, claim, self._settings)
        attempt = Attempt(
            self._connection, run.run_id, token, claim, self._settings, budget=budget, on_appended=on_appended
        )
        async with attempt.producer:
            listening = asyncio.create_task(self._listen(attempt))
            self._keeper.hold(attempt.lease)
            self._attempts.add(attempt)
            if self._is_draining:
                attempt.draining.set()
            try:
                yield attempt
            finally:
                self._attempts.discard(attempt)
                self._keeper.drop(attempt.lease)
                await cancel_and_wait(listening)
                await self._channels.unsubscribe(keys.control(run.run_id))

    async def _listen(self, attempt: Attempt) -> None:
        """Subscribes to the control channel, then reads what was stored between the claim and the subscription."""
        # After a pub/sub outage decisions are read again. A missed cancel needs nothing: each renewal returns its flag.
        await self._channels.subscribe(keys.control(attempt.run_id), attempt.on_control_message, attempt.decided.set)
        attempt.decided.set()
        try:
            if await self._redis.hget(keys.run(attempt.run_id), "cancel"):  # type: ignore[misc]
                attempt.on_cancel()
        except REDIS_AWAY:
            logger.debug("run %s: the next renewal returns a cancel", attempt.run_id)

    async def _work_to_end(
        self, run: RunRecord, claim: Claim, attempt: Attempt, toolchain: Toolchain
    ) -> Event | Outcome:
        """Does the run's work.

        Returns:
            The run's terminal event, or the outcome if this worker gives the run back.

        Raises:
            Fenced, RunEnded, TailLost: nothing more may be written.
        """
        timeout_s = float(run.request["timeout_s"])
        remaining_s = timeout_s - (claim.now - run.started_at - run.parked_ms) / 1000
        if (end := self._end_before_work(run, claim, timeout_s, remaining_s)) is not None:
            return end
        deadline = asyncio.get_running_loop().call_later(remaining_s, attempt.stop, Interrupt.TIMEOUT)
        try:
            interrupt = await attempt.work(toolchain.work(self._worker))
        except Parked as exc:
            return Outcome(Disposition.PARK, attempt.number, exc, run.tenant)
        except RunFailed as exc:
            logger.warning("run %s failed: %s", run.run_id, exc, exc_info=exc.__cause__)
            return _error(exc, toolchain.stage_id)
        except (StagebusError, *REDIS_AWAY):
            raise
        except Exception:
            logger.exception("run %s: internal error", run.run_id)
            return Error(error=INTERNAL_ERROR, code="internal", failed_stage=toolchain.stage_id)
        finally:
            deadline.cancel()
        return await self._end_of_work(run, attempt, toolchain, interrupt)

    async def _end_of_work(
        self, run: RunRecord, attempt: Attempt, toolchain: Toolchain, interrupt: Interrupt | None
    ) -> Event | Outcome:
        """Returns the terminal event after work that ended by itself or was interrupted, or the outcome of a drain."""
        match interrupt:
            case None:
                return Done(usage=total_usage(toolchain.completed))
            case Interrupt.CANCEL:
                read_event = partial(run_store.read_cancel_event, self._redis, run.run_id)
                return await retry_while_redis_is_down(read_event, f"run {run.run_id}: its cancel")
            case Interrupt.TIMEOUT:
                return _error(RunTimeout(float(run.request["timeout_s"])), toolchain.stage_id)
            case Interrupt.DRAIN:
                return Outcome(Disposition.RELEASE, attempt.number)

    def _end_before_work(self, run: RunRecord, claim: Claim, timeout_s: float, remaining_s: float) -> Event | None:
        """Returns the terminal event of a run that may not work any further, or None."""
        if claim.cancel:
            return Cancel(reason=run.cancel_reason)
        if claim.tries >= self._settings.run_tries_max:
            return _error(AttemptsExhausted(claim.tries))
        # Without time left, no stage is begun: a quick one could still finish before the deadline's timer fires.
        return _error(RunTimeout(timeout_s)) if remaining_s <= 0 else None


def _fatal_error(run_id: str, exc: Exception, tail_losses: int) -> Error | None:
    """Returns the event that ends the run, or None if another claim can continue it."""
    if isinstance(exc, TailLost):
        return _error(LogIncomplete()) if tail_losses > TAIL_LOSSES_MAX else None
    if isinstance(exc, LogIncomplete):
        logger.error("run %s: %s", run_id, exc)
        return _error(exc)
    if isinstance(exc, REDIS_AWAY) and is_passing(exc):
        return None
    # A record or a log that this worker cannot read, for example. Another worker could not read it either.
    logger.error("run %s: internal error", run_id, exc_info=exc)
    return Error(error=INTERNAL_ERROR, code="internal")


def _note_end(span: Span, event: Event, status: RunStatus) -> None:
    span.event(event.event)
    span.set({"stagebus.run.status": status.value})
    if isinstance(event, Error):
        span.fail(event.code)


def _error(failure: RunFailed, stage_id: str | None = None) -> Error:
    return Error(error=str(failure), code=failure.code, failed_stage=stage_id)
