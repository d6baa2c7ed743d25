"""The client that the stages use: it takes a request for a model by name and streams the answer as chunks.

A request goes through three files: here the model's name becomes a route and the circuit breaker and
the rate limiter have their say, a writer of `language` makes the body, and `provider` sends it and reads
the answer with a reader of `language`. What works around faulty servers and models is in `compat`.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Self

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.requests import STAGE_PARAMETERS
from stagebus.shared.domain.token_estimate import DEFAULT_ANSWER_TOKENS, estimate_prompt_tokens
from stagebus.worker.model.chat_chunks import Chunk
from stagebus.worker.model.circuit_breaker import CircuitBreaker
from stagebus.worker.model.language import language_of
from stagebus.worker.model.provider import Provider
from stagebus.worker.model.provider_limiter import ProviderLimiter, TokenReservation


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request to a model. The provider decides on every field that is None.

    Attributes:
        declared_tools: tools that other stages of the run offer. An API whose cache begins with the tools declares
            them, and forbids their use.
        route: the provider to ask and the model's id there. None means the first route of `model`.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    response_format: dict[str, Any] | None = None
    declared_tools: list[dict[str, Any]] | None = None
    route: ModelRoute | None = None

    def estimate_tokens(self) -> int:
        """Estimates the tokens of the request and its answer."""
        return self.prompt_tokens() + self.answer_tokens

    def prompt_tokens(self) -> int:
        """Estimates the tokens of the messages and the tools."""
        return estimate_prompt_tokens(self.messages, self.tools or [])

    @property
    def answer_tokens(self) -> int:
        """Estimates the tokens of the answer: the longest one allowed, or a usual one without such a limit."""
        return self.max_tokens or DEFAULT_ANSWER_TOKENS

    def ignored_parameters(self) -> list[str]:
        """Returns the parameters that the route's model does not take."""
        given = [name for name in STAGE_PARAMETERS if getattr(self, name) is not None]
        return [] if self.route is None else self.route.ignored(given)

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a chat completion request."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "route"}

    def body(self, route: ModelRoute) -> dict[str, Any]:
        """Returns the JSON body in the form that the route's provider accepts."""
        return language_of(route.api).write(self.fields(), route)


class ModelClient:
    """Asks every model that the providers file names. One instance serves all runs of a process."""

    def __init__(self, settings: Settings, providers: Providers, limiter: ProviderLimiter | None = None) -> None:
        """Without a `limiter`, the providers' rate limits are ignored."""
        self._settings = settings
        self._providers = providers
        self._limiter = limiter
        self._circuit_breaker = CircuitBreaker()
        self._provider_by_name: dict[str, Provider] = {}

    @classmethod
    def from_settings(cls, settings: Settings, limiter: ProviderLimiter | None = None) -> Self:
        """Builds the client from the providers file. Without a file, one provider serves every name.

        Raises:
            BadProviders: the file is invalid.
        """
        return cls(settings, Providers.from_settings(settings), limiter)

    def abilities(self, name: str) -> Abilities:
        """Returns what a model can do. Its field `tools` says whether the model calls tools natively.

        Raises:
            UnknownModel: no provider serves it.
        """
        return self._providers.abilities(name)

    def routes(self, name: str) -> list[ModelRoute]:
        """Returns the model's own route and its fallbacks, in the order to try. Routes that failed recently are last.

        Raises:
            UnknownModel: no provider serves it.
        """
        return self._circuit_breaker.order(self._providers.routes(name), time.monotonic())

    def reserve(self, route: ModelRoute, request: ModelRequest) -> AbstractAsyncContextManager[TokenReservation]:
        """Context manager: waits until the provider's limits allow the request and holds its slot.

        The wait may be long. Without limits there is none.
        """
        entry = self._providers.by_name[route.provider]
        estimate = 0 if entry.tokens_per_minute_max is None else request.estimate_tokens()
        return (
            nullcontext(TokenReservation(0))
            if self._limiter is None
            else self._limiter.reserve(route.provider, entry, estimate)
        )

    def record_failure(self, route: ModelRoute, retry_after_s: float | None) -> None:
        """Records that a route failed before its first token. Its fallbacks are tried first for a while."""
        self._circuit_breaker.record_failure(route, time.monotonic(), retry_after_s)

    def record_success(self, route: ModelRoute) -> None:
        """Records that a route answered."""
        self._circuit_breaker.record_success(route)

    def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """Sends the request and yields the chunks of the answer as they arrive.

        Use it within `contextlib.aclosing`. Closing it closes the connection to the provider,
        so that no further tokens are paid for.

        Raises:
            UnknownModel: no provider serves it.
            ModelUnavailable: the provider refused, was overloaded, fell silent or cut the
                connection. Retry, after `retry_after_s` if that is set.
            ModelRejected: the provider will never answer this request.
            ModelUnauthorized: the operator's key is missing or not accepted.
            ModelOutputTooLong: the answer exceeds the output limit.
        """
        route = request.route or self._providers.routes(request.model)[0]
        return self._provider(route.provider).stream(request.fields(), route)

    async def warm_up(self) -> None:
        """Builds all provider clients without a request, so that no run waits for it: it takes 190 ms of CPU."""
        for api in self._providers.apis():
            language_of(api)
        for name in self._providers.by_name:
            self._provider(name)

    async def aclose(self) -> None:
        """Closes all connections."""
        for provider in self._provider_by_name.values():
            await provider.aclose()
        if self._limiter is not None:
            await self._limiter.aclose()

    def _provider(self, name: str) -> Provider:
        if name not in self._provider_by_name:
            self._provider_by_name[name] = Provider(name, self._providers.by_name[name], self._settings)
        return self._provider_by_name[name]
