"""The runner: claim a run, let its toolchain work from where the log stands, and end it.

    claim ──▶ read the log ──▶ first stage that is not complete ──▶ … ──▶ done | cancel | error

A run gets exactly one terminal event, always its last, whatever happens.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from stagebus.shared.config.settings import Settings
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
from stagebus.shared.observability.trace import bound
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, queue_scripts, run_scripts
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing
from stagebus.shared.storage.run_scripts import Claim
from stagebus.shared.store import run_store
from stagebus.worker.execution.attempt import Attempt, GivenBack, Interrupt
from stagebus.worker.execution.history import read_history
from stagebus.worker.execution.lease import HeldLease, LeaseKeeper
from stagebus.worker.execution.pipeline import total_usage
from stagebus.worker.execution.producer import Producer
from stagebus.worker.execution.toolchain import Toolchain
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.stages.approval_gate import Parked
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.worker_metrics import WorkerMetrics

logger = logging.getLogger(__name__)

AWAY_BACKOFF_S: Final = 0.5
# A log that loses its tail so often in one worker's hands is one that takes nothing more; each claim asks, and pays, a
# provider.
LOSSES_MAX: Final = 10
INTERNAL_ERROR: Final = "an internal error; the worker's log has its cause"


class Outcome(NamedTuple):
    """What becomes of the run's job: over, or given back by this attempt, perhaps to wait for a person."""

    is_over: bool
    attempt: int | None = None
    parked: Parked | None = None


class Runner:
    """Carries out the runs that this worker has taken."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        *,
        connection: PipelinedConnection,
        worker: str,
        model: ModelClient,
        tools: ToolRegistry,
        keeper: LeaseKeeper,
        channels: Channels,
        metrics: WorkerMetrics,
    ) -> None:
        self._redis = redis
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

    async def run(self, run_id: str, token: str) -> Outcome:
        """Work on the run until it ends or this worker has to give it back.

        Raises:
            Fenced: another attempt owns the run; nothing of it is ours to touch.
        """
        losses = 0
        while True:
            try:
                return await self._claim_and_work(run_id, token)
            except TailLost as exc:
                losses += 1
                logger.warning("%s; claiming anew", exc)
                if losses > LOSSES_MAX:
                    return await self._end_broken(run_id, token, _error(LogIncomplete()))
                if losses > 1:
                    await asyncio.sleep(AWAY_BACKOFF_S)
            except RunEnded:
                return await self._over(run_id)
            except LogIncomplete as exc:
                logger.error("run %s: %s", run_id, exc)  # noqa: TRY400 - there is nothing more to tell
                return await self._end_broken(run_id, token, _error(exc))
            except Fenced:
                raise
            except Exception as exc:
                if not (isinstance(exc, REDIS_AWAY) and is_passing(exc)):
                    # A record or a log that this worker cannot read, say: no other could, either.
                    logger.exception("run %s: internal error", run_id)
                    return await self._end_broken(run_id, token, Error(error=INTERNAL_ERROR, code="internal"))
                logger.warning("run %s: Redis is away (%s); claiming anew", run_id, exc)
            await self._hold_still(run_id, token)

    async def _end_broken(self, run_id: str, token: str, event: Error) -> Outcome:
        """End a run that cannot be carried out, by nothing but its claim.

        Raises:
            Fenced: another attempt owns the run.
        """
        while True:
            await self._hold_still(run_id, token)
            try:
                claim = await run_scripts.claim(self._redis, run_id, self._worker, token=token)
                assert claim is not None, "a claim of held runs, too, always answers"
                if await run_store.end_claimed(self._redis, self._settings, run_id, claim, event):
                    self._metrics.run_ended(RunStatus.FAILED)
                    return Outcome(is_over=True)
            except RunEnded:
                return await self._over(run_id)
            except REDIS_AWAY as exc:
                if not is_passing(exc):
                    raise
                logger.warning("run %s: its end waits for Redis: %s", run_id, exc)
                await asyncio.sleep(AWAY_BACKOFF_S)

    async def _hold_still(self, run_id: str, token: str) -> None:
        """Return when the lease is certainly ours, so that the next claim takes the run from nobody.

        Raises:
            Fenced: another worker holds it.
        """
        while True:
            try:
                is_ours = await queue_scripts.acquire(
                    self._redis, run_id, token, self._settings.lease_s, self._settings.tenant_runs_running
                )
            except REDIS_AWAY as exc:
                if not is_passing(exc):
                    raise
                await asyncio.sleep(AWAY_BACKOFF_S)
                continue
            if not is_ours:
                raise Fenced(run_id, 0)
            return

    def held(self) -> list[tuple[str, int]]:
        """The runs at work, each with its attempt."""
        return [(attempt.run_id, attempt.number) for attempt in self._attempts]

    def begin_drain(self) -> None:
        """Give every run back at its next safe point."""
        self._is_draining = True
        for attempt in self._attempts:
            attempt.draining.set()

    def give_back_now(self) -> None:
        """Give every run back, whatever it is at."""
        for attempt in self._attempts:
            attempt.stop(Interrupt.DRAIN)

    def look_again(self) -> None:
        """Decisions may have been missed; a cancel's flag comes with every renewal as well."""
        for attempt in self._attempts:
            attempt.decided.set()

    async def _claim_and_work(self, run_id: str, token: str) -> Outcome:
        claim = await run_scripts.claim(self._connection, run_id, self._worker, token=token)
        assert claim is not None, "a claim of held runs, too, always answers"
        run = decode_run(run_id, claim.record)
        assert run is not None, "what was claimed has a record"
        with bound(run.trace):
            return await self._work(claim, run, token)

    async def _work(self, claim: Claim, run: RunRecord, token: str) -> Outcome:
        run_id = run.run_id
        history = await read_history(self._redis, run_id, claim.stage_ids)
        async with self._attempt(claim, run_id, history.stage_ids, token) as attempt:
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
            try:
                event = await self._find_end(run, claim, attempt, toolchain)
            except (GivenBack, Parked) as exc:
                await attempt.producer.flush()
                return Outcome(is_over=False, attempt=attempt.number, parked=exc if isinstance(exc, Parked) else None)
            end = run_store.end_of(event, self._settings, total_usage(toolchain.completed))
            attempt.producer.put(event, end)
            await attempt.producer.flush()
        self._metrics.run_ended(end.status)
        return await self._over(run_id)

    async def _over(self, run_id: str) -> Outcome:
        try:
            await run_store.settle(self._redis, self._settings, run_id)
        except REDIS_AWAY:
            logger.info("run %s has ended; the sweep tidies up", run_id)
        return Outcome(is_over=True)

    @asynccontextmanager
    async def _attempt(self, claim: Claim, run_id: str, stage_ids: list[str], token: str) -> AsyncIterator[Attempt]:
        """An attempt with its producer at work, its lease renewed and its cancel listened for."""
        async with Producer(
            self._connection,
            run_id,
            claim.attempt,
            claim.last_id,
            stage_ids=stage_ids,
            ttl_s=self._settings.live_ttl_s,
            pending_max_bytes=self._settings.pending_max_bytes,
        ) as producer:
            if self._settings.worker_metrics_port:
                producer.on_appended = self._metrics.appended
            attempt = Attempt(run_id, claim.attempt, producer)
            producer.on_cancel, producer.on_failure = attempt.cancel, attempt.fail
            held = HeldLease(
                run_id, token, attempt.number, producer.stage_ids, attempt.on_renewed, attempt.on_lease_lost
            )
            listening = asyncio.create_task(self._listen(attempt))
            self._keeper.hold(held)
            self._attempts.add(attempt)
            if self._is_draining:
                attempt.draining.set()
            try:
                yield attempt
            finally:
                self._attempts.discard(attempt)
                self._keeper.drop(held)
                await cancel_and_wait(listening)
                await self._channels.unsubscribe(keys.control(run_id))

    async def _listen(self, attempt: Attempt) -> None:
        """Hear of a cancel and of decisions; those that came after the claim and before the channel was ours are stored."""
        await self._channels.subscribe(keys.control(attempt.run_id), attempt.hear)
        attempt.decided.set()
        try:
            if await self._redis.hget(keys.run(attempt.run_id), "cancel"):  # type: ignore[misc]
                attempt.cancel()
        except REDIS_AWAY:
            logger.debug("run %s: the next renewal tells of a cancel", attempt.run_id)

    async def _find_end(self, run: RunRecord, claim: Claim, attempt: Attempt, toolchain: Toolchain) -> Event:
        """Do the run's work; returns its terminal event.

        Raises:
            GivenBack, Parked: it does not end here.
            Fenced, RunEnded, TailLost: nothing more may be written.
        """
        if claim.cancel or claim.tries >= self._settings.run_tries_max:
            return Cancel() if claim.cancel else _error(AttemptsExhausted(claim.tries))
        timeout_s = float(run.request["timeout_s"])
        worked_ms = claim.now - run.started_at - run.parked_ms
        remaining_s = max(0.0, timeout_s - worked_ms / 1000)
        if not remaining_s:
            return _error(RunTimeout(timeout_s))  # nothing is begun that a quick stage might finish all the same
        deadline = asyncio.get_running_loop().call_later(remaining_s, attempt.stop, Interrupt.TIMEOUT)
        try:
            interrupt = await attempt.work(toolchain.work(self._worker))
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
        ends = {Interrupt.CANCEL: Cancel(), Interrupt.TIMEOUT: _error(RunTimeout(timeout_s), toolchain.stage_id)}
        return ends[interrupt] if interrupt else Done(usage=total_usage(toolchain.completed))


def _error(failure: RunFailed, stage_id: str | None = None) -> Error:
    return Error(error=str(failure), code=failure.code, failed_stage=stage_id)
