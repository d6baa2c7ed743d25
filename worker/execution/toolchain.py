"""The work of one attempt: the run's stages one after the other, each event appended as it happens."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import (
    ChunkTemplate,
    Event,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolResult,
)
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.runs import EXTRACTION, TOOLS, RunRecord, round_stage
from stagebus.shared.domain.stage_results import CUT_REASONS
from stagebus.shared.domain.token_estimate import DEFAULT_ANSWER_TOKENS
from stagebus.shared.errors import UnknownModel, UnknownTools
from stagebus.shared.observability.spans import span
from stagebus.shared.storage.redis_client import Redis
from stagebus.worker.execution.answer_reader import AnswerReader
from stagebus.worker.execution.attempt import Attempt, WorkerDraining
from stagebus.worker.execution.call_terms import call_terms
from stagebus.worker.execution.history import History, read_checkpoints
from stagebus.worker.execution.history_composer import HistoryLimits
from stagebus.worker.execution.model_stage_runner import ModelStageRunner
from stagebus.worker.execution.pipeline import (
    NOTHING_ADDED,
    NextStage,
    call_ids,
    conversation,
    model_result,
    next_stage,
    stage_option,
    stage_parameters,
    tool_choice,
)
from stagebus.worker.execution.stage_publisher import publish_stage
from stagebus.worker.execution.thread_run import ThreadRun
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.model.token_meter import TokenMeter
from stagebus.worker.stages.call_plan import Checkpoints
from stagebus.worker.stages.call_runner import RunIdentity
from stagebus.worker.stages.model_stage import REFUSAL, AnswerRules, InvalidAnswer, model_stage
from stagebus.worker.stages.structured_answer import AnswerFormat
from stagebus.worker.stages.tools_stage import RoundLimits, tools_stage
from stagebus.worker.tools.client_tools import build_client_tools
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.worker_metrics import WorkerMetrics


class Toolchain:
    """Runs the stages that the log does not have as complete, up to the run's answer."""

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
        answer = self._request.response_format
        self._answer_format = None if answer is None else AnswerFormat(answer)
        self._attempt = attempt
        self._history = history
        self._redis = redis
        self._settings = settings
        self._model = model
        self._registry = tools
        self._client_tools = build_client_tools(self._request.client_tools, settings.tool_result_max_bytes)
        self._tools = tools.snapshot(self._client_tools)
        self._thread = ThreadRun(redis, settings, run, attempt) if run.thread_key else None
        self._offered = tuple(tools.default_names() if self._request.tools is None else self._request.tools)
        self.completed = dict(history.completed)
        self._completed_ids = dict(history.completed_ids)
        self.stage_id: str | None = None  # the stage at work
        self._worker = ""

    def stages(self) -> dict[str, StageCompleted | None]:
        """Returns the stages that the run has begun, in order; None if a stage is not complete."""
        begun = [*self._history.begun, *([self.stage_id] if self.stage_id else [])]
        return {**self.completed, **{stage_id: None for stage_id in begun if stage_id not in self.completed}}

    async def work(self, worker: str) -> None:
        """Runs every stage that is not complete.

        Raises:
            RunFailed: the run cannot continue, or it used more tokens than it may.
            WorkerDraining: the worker shuts down and the run is at a safe point.
            Parked: the run waits for somebody outside.
            Fenced, RunEnded, TailLost: nothing more may be written.
        """
        self._worker = worker
        self._put(RunStarted(attempt=self._attempt.number, worker=worker))
        if self._thread is not None:
            self._request = await self._thread.compose(self._request, self._history_limits())
        await self._resolve_tools()
        while (stage := next_stage(self._request, self.completed)) is not None:
            if self._attempt.draining.is_set():
                raise WorkerDraining("between stages")
            if self._thread is not None and stage.kind != TOOLS and stage.stage_id not in self._history.begun:
                await self._thread.take_waiting(stage.stage_id)
            self.stage_id = stage.stage_id
            run_stage = self._run_tools_stage if stage.kind == TOOLS else self._run_model_stage
            with span(stage.stage_id, attributes={"stagebus.stage": stage.kind}):
                completed = await run_stage(stage)
            self._metrics.stage_ended(stage.kind, (completed.duration_ms or 0) / 1000)
            self.completed[stage.stage_id] = completed
            self._completed_ids[stage.stage_id] = self._attempt.producer.last_id
            await self._attempt.budget.check()
        self.stage_id = None

    async def _resolve_tools(self) -> None:
        """Checks that every tool of the request exists; waits for tool sources that could not be reached yet."""
        if set(self._offered) - set(self._tools.names()):
            await self._attempt.unless_draining(self._registry.wait_for(self._request.registry_tools))
            self._tools = self._registry.snapshot(self._client_tools)
        if unknown := set(self._offered) - set(self._tools.names()):
            raise UnknownTools(sorted(unknown))

    def _history_limits(self) -> HistoryLimits:
        """Returns the size of a history that fits the models of all stages, together with their answers."""
        tokens: list[int] = []
        for model, answer in zip(self._request.models, self._request.max_tokens, strict=True):
            with suppress(UnknownModel):  # the stage fails with it
                if (context := self._model.routes(model)[0].abilities.context_tokens) is not None:
                    tokens.append(max(context - (answer or DEFAULT_ANSWER_TOKENS), 0))
        return HistoryLimits(self._settings.history_max_bytes, min(tokens, default=None))

    def _put(self, event: Event) -> EventId:
        return self._attempt.producer.put(event)

    def _restart(self, stage: NextStage, discard_from: int) -> None:
        self._put(StageRestarted(stage_id=stage.stage_id, attempt=self._attempt.number, discard_from=discard_from))

    # --- model stages --------------------------------------------------------

    async def _run_model_stage(self, stage: NextStage) -> StageCompleted:
        model = stage_option(self._request.models, stage)
        first_id = self._history.begun.get(stage.stage_id)
        if first_id is not None:
            self._restart(stage, first_id.sequence + 1)  # the first event, `stage_started`, stays valid
        else:
            template = ChunkTemplate(
                id=f"chatcmpl-{self._run.run_id}-{stage.stage_id}", created=self._run.created_at // 1000, model=model
            )
            ignored = self._ignored_parameters(stage, model)
            first_id = self._put(
                StageStarted(stage_id=stage.stage_id, attempt=self._attempt.number, chunk=template, ignored=ignored)
            )
        stage_runner = ModelStageRunner(
            stage.stage_id,
            self._attempt,
            self._model,
            self._settings,
            self._metrics,
            void_from=first_id.sequence + 1,
            request_for=partial(self._model_request, stage),
            events_of=partial(self._model_events, stage),
        )
        return await stage_runner.run(model)

    def _ignored_parameters(self, stage: NextStage, model: str) -> list[str] | None:
        """Returns the run's parameters that the model does not take; None if there are none."""
        with suppress(UnknownModel):  # the stage fails with it
            return self._model.routes(model)[0].ignored(stage_parameters(self._request, stage)) or None
        return None

    def _model_request(self, stage: NextStage, route: ModelRoute) -> ModelRequest:
        definitions = self._tools.definitions(self._offered) if route.abilities.tools != "none" else []
        tools = definitions if stage.kind == EXTRACTION and definitions else None
        answer_format = self._request.response_format
        return ModelRequest(
            model=route.name,
            route=route,
            messages=conversation(self._request, self.completed, self._thread.added if self._thread else NOTHING_ADDED),
            tools=tools,
            tool_choice=tool_choice(self._request, stage) if tools else None,
            parallel_tool_calls=self._request.parallel_tool_calls if tools else None,
            response_format=answer_format if _takes_format(route, tools, answer_format) else None,
            **stage_parameters(self._request, stage),
            declared_tools=definitions or None,
        )

    def _model_events(
        self, stage: NextStage, request: ModelRequest, invalid: InvalidAnswer | None, meter: TokenMeter
    ) -> AsyncGenerator[Event, None]:
        check = None
        if request.route is not None and request.route.abilities.tools == "prompted":
            check = partial(self._tools.check, allowed=frozenset(self._offered))
        rules = AnswerRules(check, self._answer_format, invalid)
        taken_ids = call_ids(self.completed) | (self._thread.call_ids if self._thread else set())
        return model_stage(stage.stage_id, self._model, request, taken_ids, rules, meter)

    # --- tools ---------------------------------------------------------------

    async def _run_tools_stage(self, stage: NextStage) -> StageCompleted:
        began_at = time.monotonic()
        checkpoints = Checkpoints()
        if stage.stage_id in self._history.begun:
            checkpoints = await read_checkpoints(self._redis, self._run.run_id, stage.stage_id)
            # The stage continues from its checkpoints, so no event before this one is void.
            self._restart(stage, self._attempt.producer.next_sequence)
        else:
            self._put(StageStarted(stage_id=stage.stage_id, attempt=self._attempt.number))
        extraction_id = round_stage(EXTRACTION, stage.round_number)
        extraction, ref = model_result(self.completed[extraction_id]), self._completed_ids[extraction_id]
        events = tools_stage(
            stage.stage_id,
            extraction.tool_calls,
            self._tools,
            identity=RunIdentity.of(self._run, self._attempt.number),
            allowed=frozenset(self._offered),
            limits=RoundLimits(
                self._settings.tool_calls_max, self._settings.tools_timeout_s, self._settings.approval_wait_s
            ),
            checkpoints=checkpoints,
            source=AnswerReader(self._redis, self._run.run_id, str(ref), self._attempt.decided, self._worker),
            terms=call_terms(self._run, ref, self._settings),
            until_stored=self._attempt.producer.flush,
            is_cut_off=extraction.finish_reason in (*CUT_REASONS, REFUSAL),
        )
        return await publish_stage(self._attempt.producer, events, began_at, self._count_tool_result)

    def _count_tool_result(self, event: Event) -> None:
        if isinstance(event, ToolResult):
            self._metrics.tool_ended(event, is_known=event.name in self._registry.names())


def _takes_format(route: ModelRoute, tools: Sequence[Any] | None, answer_format: dict[str, Any] | None) -> bool:
    """Returns whether the provider gets the answer's format; if not, the prompt describes it.

    Tools in the prompt are called in text, not in JSON. Anthropic's API has no JSON mode, and refuses a schema outside
    of its strict subset.
    """
    abilities = route.abilities
    if route.api == "messages" and not (answer_format or {}).get("json_schema", {}).get("strict"):
        return False
    is_known = abilities.structured_output == "native" and not route.ignored(["response_format"])
    return is_known and not (tools and abilities.tools == "prompted")
