"""A run's work: its stages one after the other, each event put as it happens, with retries."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from itertools import pairwise

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import (
    ChunkTemplate,
    Event,
    RetryScheduled,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCompletionChunk,
    ToolResult,
)
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.runs import EXTRACTION, TOOLS, RunRecord, round_stage
from stagebus.shared.errors import ModelError, ModelUnavailable, UnknownTools
from stagebus.shared.storage.redis_client import Redis
from stagebus.worker.execution.attempt import Attempt, GivenBack
from stagebus.worker.execution.decision_reader import DecisionReader
from stagebus.worker.execution.history import History, read_checkpoints
from stagebus.worker.execution.pipeline import (
    NextStage,
    call_ids,
    conversation,
    model_result,
    next_stage,
    stage_option,
    tool_choice,
)
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.stages.approval_gate import ApprovalGate
from stagebus.worker.stages.call_plan import Checkpoints
from stagebus.worker.stages.call_runner import RunIdentity
from stagebus.worker.stages.model_stage import InvalidToolCalls, PromptedTools, model_stage
from stagebus.worker.stages.tools_stage import RoundLimits, tools_stage
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.worker_metrics import ModelRequestMetrics, WorkerMetrics

logger = logging.getLogger(__name__)


class Toolchain:
    """Takes one attempt from where the log stands to the run's answer."""

    def __init__(
        self,
        run: RunRecord,
        attempt: Attempt,
        history: History,
        *,
        redis: Redis,
        settings: Settings,
        model: ModelClient,
        tools: ToolRegistry,
        metrics: WorkerMetrics,
    ) -> None:
        self._run = run
        self._metrics = metrics
        self._request = RunRequest.model_validate(run.request)
        self._attempt = attempt
        self._history = history
        self._redis = redis
        self._settings = settings
        self._model = model
        self._registry = tools
        self._tools = tools.snapshot()
        self._offered = tuple(tools.default_names() if self._request.tools is None else self._request.tools)
        self.completed = dict(history.completed)
        self.stage_id: str | None = None
        self._has_output = False  # since the stage began or was restarted
        self._began_at = 0.0  # when this attempt went to the stage; monotonic
        self._retries = 0  # of the stage, by this attempt
        self._asked: ModelRequestMetrics | None = None  # the last request to a provider
        self._void_from = 0  # the sequence after the model stage's very first event

    async def work(self, worker: str) -> None:
        """Do every stage that is not complete.

        Raises:
            RunFailed: the run cannot go on.
            GivenBack: this worker shuts down and the run is at a safe point.
            Parked: the run waits for a person.
            Fenced, RunEnded, TailLost: nothing more may be written.
        """
        self._put(RunStarted(attempt=self._attempt.number, worker=worker))
        await self._find_tools()
        while (stage := next_stage(self._request, self.completed)) is not None:
            if self._attempt.draining.is_set():
                raise GivenBack("between stages")
            self.stage_id = stage.stage_id
            completed = await self._do(stage)
            self._metrics.stage_ended(stage.kind, (completed.duration_ms or 0) / 1000)
            self.completed[stage.stage_id] = completed
        self.stage_id = None

    async def _find_tools(self) -> None:
        """DecisionSnapshot whether all that the request names is there, or comes once its source can be reached."""
        if set(self._offered) - set(self._tools.names()):
            await self._attempt.unless_draining(self._registry.wait_for(self._offered))
            self._tools = self._registry.snapshot()
        if unknown := set(self._offered) - set(self._tools.names()):
            raise UnknownTools(sorted(unknown))

    async def _do(self, stage: NextStage) -> StageCompleted:
        self._began_at = time.monotonic()
        if stage.kind == TOOLS:
            return await self._publish(await self._run_tools(stage))
        self._void_from = self._begin_model(stage).sequence + 1
        self._retries = 0
        for go in range(1, self._settings.model_retries_max + 1):
            try:
                return await self._ask_in_turn(stage)
            except ModelError as exc:
                if not exc.retryable:
                    raise
                await self._back_off(stage, go, exc)
            if self._has_output:
                self._restart(stage, self._void_from)
        return await self._ask_in_turn(stage)

    async def _ask_in_turn(self, stage: NextStage) -> StageCompleted:
        """Ask the stage's model, and one that is down before its first token leaves the stage to its next fallback."""
        routes = self._model.routes(stage_option(self._request.models, stage))
        for route, fallback in pairwise(routes):
            try:
                return await self._ask(stage, route)
            except ModelUnavailable as exc:
                if self._has_output:
                    raise
                self._model.record_failure(route, exc.retry_after_s)
                self._announce(stage, exc, model=fallback.name)
        return await self._ask(stage, routes[-1])

    async def _ask(self, stage: NextStage, route: ModelRoute, again: InvalidToolCalls | None = None) -> StageCompleted:
        """Ask one provider, once it has a slot for us. Only the wait ends at once where this worker shuts down."""
        try:
            async with AsyncExitStack() as held:
                request = self._model_request(stage, route)
                slot = self._model.reserve(route, request)
                spending = await self._attempt.unless_draining(held.enter_async_context(slot))
                self._asked = self._metrics.request_started(route)
                completed = await self._publish(self._ask_model(stage, request, again))
                if completed.usage is not None:
                    self._asked.used(completed.usage)
                    spending.tokens = completed.usage.total_tokens - (again.usage.total_tokens if again else 0)
        except ModelError as exc:
            if self._asked is not None:
                self._asked.failed(exc.code)
            raise
        except InvalidToolCalls as exc:
            self._announce(stage, exc)
            self._restart(stage, self._void_from)
            return await self._ask(stage, route, exc)
        self._model.record_success(route)
        return completed

    async def _back_off(self, stage: NextStage, go: int, exc: ModelError) -> None:
        """Wait before the stage is done again; a worker that shuts down does not wait."""
        backoff_s = backoff(self._settings, go, exc.retry_after_s, random.random())  # noqa: S311 - jitter
        self._announce(stage, exc, backoff_s=round(backoff_s, 3))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._attempt.draining.wait(), backoff_s)
            raise GivenBack("before a retry")

    def _announce(self, stage: NextStage, exc: Exception, *, backoff_s: float = 0, model: str | None = None) -> None:
        self._retries += 1
        if self._asked is not None:
            self._asked.retried()
        what = f"{model} is asked in its place" if model else f"again in {backoff_s:.1f} s"
        logger.warning("run %s: %s: %s; %s", self._run.run_id, stage.stage_id, exc, what)
        retry_of, retry, reason = stage.stage_id, self._retries, str(exc)
        self._put(RetryScheduled(retry_of=retry_of, retry=retry, backoff_s=backoff_s, reason=reason, model=model))

    async def _publish(self, events: AsyncGenerator[Event, None]) -> StageCompleted:
        """Put a stage's events as they come; its last one is its completion."""
        last: Event | None = None
        async with aclosing(events):
            async for event in events:
                last = self._timed(event)
                self._put(last)
                if self._attempt.producer.is_full:
                    await self._attempt.producer.wait_for_room()
        assert isinstance(last, StageCompleted), "a stage ends with its completion"
        return last

    def _timed(self, event: Event) -> Event:
        if isinstance(event, ToolResult):
            self._metrics.tool_ended(event, is_known=event.name in self._tools.names())
        if not isinstance(event, StageCompleted):
            return event
        return event.model_copy(update={"duration_ms": round(1000 * (time.monotonic() - self._began_at))})

    def _put(self, event: Event) -> EventId:
        if not self._has_output and isinstance(event, ToolCompletionChunk):
            self._has_output = True
            if self._asked is not None:
                self._asked.began()
        return self._attempt.producer.put(event)

    # --- model stages --------------------------------------------------------

    def _begin_model(self, stage: NextStage) -> EventId:
        """Put this attempt's first event of the stage; returns the id of the stage's very first."""
        first_id = self._history.begun.get(stage.stage_id)
        if first_id is not None:
            self._restart(stage, first_id.sequence + 1)
            return first_id
        template = ChunkTemplate(
            id=f"chatcmpl-{self._run.run_id}-{stage.stage_id}",
            created=self._run.created_at // 1000,
            model=stage_option(self._request.models, stage),
        )
        self._has_output = False
        return self._put(StageStarted(stage_id=stage.stage_id, attempt=self._attempt.number, chunk=template))

    def _restart(self, stage: NextStage, discard_from: int) -> None:
        """Void what came of the stage so far; its `stage_started`, the first event, still holds."""
        self._has_output = False
        self._put(StageRestarted(stage_id=stage.stage_id, attempt=self._attempt.number, discard_from=discard_from))

    def _model_request(self, stage: NextStage, route: ModelRoute) -> ModelRequest:
        is_offered = stage.kind == EXTRACTION and self._offered and route.abilities.tools != "none"
        tools = self._tools.definitions(self._offered) if is_offered else None
        return ModelRequest(
            model=route.name,
            route=route,
            messages=conversation(self._request, self.completed),
            tools=tools,
            tool_choice=tool_choice(self._request, stage) if tools else None,
            parallel_tool_calls=self._request.parallel_tool_calls if tools else None,
            max_tokens=stage_option(self._request.max_tokens, stage),
            temperature=stage_option(self._request.temperature, stage),
        )

    def _ask_model(
        self, stage: NextStage, request: ModelRequest, again: InvalidToolCalls | None
    ) -> AsyncGenerator[Event, None]:
        prompting = None
        if request.route is not None and request.route.abilities.tools == "prompted":
            prompting = PromptedTools(partial(self._tools.check, allowed=frozenset(self._offered)), again)
        return model_stage(stage.stage_id, self._model, request, call_ids(self.completed), prompting)

    # --- tools ---------------------------------------------------------------

    async def _run_tools(self, stage: NextStage) -> AsyncGenerator[Event, None]:
        checkpoints = Checkpoints()
        if stage.stage_id in self._history.begun:
            checkpoints = await read_checkpoints(self._redis, self._run.run_id, stage.stage_id)
            # Resumes from its checkpoints, so nothing before this very event is void.
            self._restart(stage, self._attempt.producer.next_sequence)
        else:
            self._put(StageStarted(stage_id=stage.stage_id, attempt=self._attempt.number))
        approvals = DecisionReader(self._redis, self._run.run_id, self._attempt.decided)
        extraction = self.completed[round_stage(EXTRACTION, stage.round_number)]
        return tools_stage(
            stage.stage_id,
            model_result(extraction).tool_calls,
            self._tools,
            identity=RunIdentity(self._run.run_id, self._run.tenant, self._attempt.number),
            allowed=frozenset(self._offered),
            limits=RoundLimits(self._settings.tool_calls_max, self._settings.tools_timeout_s),
            checkpoints=checkpoints,
            gate=ApprovalGate(stage.stage_id, approvals, checkpoints.approvals, self._settings.approval_wait_s),
            until_stored=self._attempt.producer.flush,
        )


def backoff(settings: Settings, retry: int, retry_after_s: float | None, jitter: float) -> float:
    """Seconds before retry number `retry`: doubling, half of it jitter, but no sooner than the provider asks.

    Args:
        jitter: from 0 to 1.
    """
    doublings = min(retry - 1, 100)  # a float holds no more than a thousand
    grown = min(settings.model_backoff_s * 2.0**doublings, settings.model_backoff_max_s)
    return min(max(grown * (0.5 + 0.5 * jitter), retry_after_s or 0.0), settings.model_backoff_max_s)
