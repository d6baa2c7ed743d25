"""Runs one model stage of an attempt: asks its providers, with retries, fallbacks and restarts."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, suppress
from itertools import pairwise

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import Event, RetryScheduled, StageCompleted, StageRestarted, ToolCompletionChunk
from stagebus.shared.errors import ModelError, ModelUnavailable
from stagebus.worker.execution.attempt import Attempt, WorkerDraining
from stagebus.worker.execution.stage_publisher import publish_stage
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.model.model_span import ModelSpan, model_span
from stagebus.worker.model.token_meter import TokenMeter
from stagebus.worker.stages.model_stage import InvalidAnswer
from stagebus.worker.worker_metrics import ModelRequestMetrics, WorkerMetrics

logger = logging.getLogger(__name__)


class ModelStageRunner:
    """One model stage, from its first request to its completion.

    retry     a retryable error: the same routes again, after a backoff, at most `model_retries_max` times
    fallback  a route that is down before its first token: the next route, without a backoff
    repair    an answer that cannot be used: the same route once more, told what was wrong
    """

    def __init__(
        self,
        stage_id: str,
        attempt: Attempt,
        client: ModelClient,
        settings: Settings,
        metrics: WorkerMetrics,
        *,
        void_from: int,
        request_for: Callable[[ModelRoute], ModelRequest],
        events_of: Callable[[ModelRequest, InvalidAnswer | None, TokenMeter], AsyncGenerator[Event, None]],
    ) -> None:
        """The stage's first event was put already.

        Args:
            void_from: the sequence after that event; a restart voids the events from there on.
            request_for: builds the request to a route.
            events_of: sends a request and yields the stage's events; with the first answer, if it cannot be used, and
                the meter that counts the request's tokens.
        """
        self._stage_id = stage_id
        self._attempt = attempt
        self._client = client
        self._settings = settings
        self._metrics = metrics
        self._void_from = void_from
        self._request_for = request_for
        self._events_of = events_of
        self._began_at = time.monotonic()
        self._retries = 0
        self._has_output = False  # since the stage began or was restarted
        self._request_metrics: ModelRequestMetrics | None = None  # of the last request to a provider
        self._span: ModelSpan | None = None  # the same
        self._last_span = ""  # its context

    async def run(self, model: str) -> StageCompleted:
        """Runs the stage with the model of that name and its fallbacks.

        Raises:
            ModelError: the last retry failed, or a retry would not help.
            BudgetExceeded: the run may not use any further token.
            WorkerDraining: the worker shuts down before a request or a retry.
        """
        for retry in range(1, self._settings.model_retries_max + 1):
            try:
                return await self._try_routes(model)
            except ModelError as exc:
                if not exc.retryable:
                    raise
                await self._back_off(retry, exc)
            if self._has_output:
                self._restart()
        return await self._try_routes(model)

    async def _try_routes(self, model: str) -> StageCompleted:
        routes = self._client.routes(model)
        for route, fallback in pairwise(routes):
            try:
                return await self._ask(route)
            except ModelUnavailable as exc:
                if self._has_output:
                    raise
                self._client.record_failure(route, exc.retry_after_s)
                self._announce_retry(exc, fallback=fallback)
        return await self._ask(routes[-1])

    async def _ask(self, route: ModelRoute) -> StageCompleted:
        """Asks one provider; if its answer cannot be used, asks once more."""
        try:
            completed = await self._request(route)
        except InvalidAnswer as exc:
            self._announce_retry(exc)
            self._restart()
            completed = await self._request(route, exc)
        self._client.record_success(route)
        return completed

    async def _request(self, route: ModelRoute, invalid: InvalidAnswer | None = None) -> StageCompleted:
        """Sends one request once the provider has a free slot. Only the wait for the slot ends when the worker drains."""
        try:
            async with AsyncExitStack() as stack:
                request = self._request_for(route)
                slot = stack.enter_async_context(self._client.reserve(route, request))
                reservation = await self._attempt.unless_draining(slot)
                budget = self._attempt.budget
                meter = await stack.enter_async_context(budget.request(request.prompt_tokens(), request.answer_tokens))
                self._request_metrics = self._metrics.request_started(route)
                stack.callback(self._note_usage, route, meter, invalid)
                self._span = stack.enter_context(model_span(route, request, repeats=self._last_span))
                self._last_span = self._span.traceparent
                completed = await publish_stage(
                    self._attempt.producer,
                    self._events_of(request, invalid, meter),
                    self._began_at,
                    self._on_event,
                    budget=budget,
                )
                self._span.completed(completed)
                if completed.usage is not None:
                    self._request_metrics.used(completed.usage)
                    reservation.tokens = completed.usage.total_tokens - (invalid.usage.total_tokens if invalid else 0)
        except ModelError as exc:
            if self._request_metrics is not None:
                self._request_metrics.failed(exc.code)
            raise
        self._attempt.cut_usage = None
        return completed

    def _note_usage(self, route: ModelRoute, meter: TokenMeter, invalid: InvalidAnswer | None) -> None:
        """Notes the tokens of the request in case it was stopped or failed, with those of the unusable first answer."""
        usage = meter.usage_so_far()
        if usage is not None and invalid is not None:
            usage += invalid.usage
        self._attempt.cut_usage = usage and usage.model_copy(update={"cost": route.cost(usage)})

    def _on_event(self, event: Event) -> None:
        if not self._has_output and isinstance(event, ToolCompletionChunk):
            self._has_output = True
            if self._request_metrics is not None:
                self._request_metrics.began()
            if self._span is not None:
                self._span.began()

    async def _back_off(self, retry: int, exc: ModelError) -> None:
        backoff_s = backoff(self._settings, retry, exc.retry_after_s, random.random())  # noqa: S311 - jitter
        self._announce_retry(exc, backoff_s=round(backoff_s, 3))
        with suppress(TimeoutError):
            async with asyncio.timeout(backoff_s):
                await self._attempt.draining.wait()
            raise WorkerDraining("before a retry")

    def _announce_retry(self, exc: Exception, *, backoff_s: float = 0, fallback: ModelRoute | None = None) -> None:
        self._retries += 1
        if self._request_metrics is not None:
            self._request_metrics.retried()
        plan = f"falling back to {fallback.name}" if fallback else f"retrying in {backoff_s:.1f} s"
        logger.warning("run %s: %s: %s; %s", self._attempt.run_id, self._stage_id, exc, plan)
        retry = RetryScheduled(retry_of=self._stage_id, retry=self._retries, backoff_s=backoff_s, reason=str(exc))
        if fallback is not None:
            ignored = self._request_for(fallback).ignored_parameters()
            retry = retry.model_copy(update={"model": fallback.name, "ignored": ignored or None})
        self._attempt.producer.put(retry)

    def _restart(self) -> None:
        """Voids the stage's events after its first one, `stage_started`, which stays valid."""
        self._has_output = False
        self._attempt.producer.put(
            StageRestarted(stage_id=self._stage_id, attempt=self._attempt.number, discard_from=self._void_from)
        )


def backoff(settings: Settings, retry: int, retry_after_s: float | None, jitter: float) -> float:
    """Returns the seconds before retry number `retry`: doubling, half of it jitter, at least the provider's Retry-After.

    Args:
        jitter: from 0 to 1.
    """
    doublings = min(retry - 1, 100)  # a float holds no more than a thousand
    grown = min(settings.model_backoff_s * 2.0**doublings, settings.model_backoff_max_s)
    return min(max(grown * (0.5 + 0.5 * jitter), retry_after_s or 0.0), settings.model_backoff_max_s)
