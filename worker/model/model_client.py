"""What the stages ask: a request to a model by its name, and its answer as chunks."""

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import orjson

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.config.settings import Settings
from stagebus.worker.model.chat_chunks import Chunk
from stagebus.worker.model.chat_request import chat_request_body
from stagebus.worker.model.circuit_breaker import CircuitBreaker
from stagebus.worker.model.provider import Provider
from stagebus.worker.model.provider_limiter import ProviderLimiter, TokenReservation

BYTES_PER_TOKEN: Final = 4
# Of an answer whose length nobody limits.
ANSWER_TOKENS: Final = 500


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What to ask of a model. None leaves a field to the provider.

    Attributes:
        route: who is asked; where it is None, the first that serves the name.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    route: ModelRoute | None = None

    def estimate_tokens(self) -> int:
        """What it will come to, before anybody knows: four bytes a token, and the longest answer that it allows."""
        asked = len(orjson.dumps([self.messages, self.tools or []])) // BYTES_PER_TOKEN
        return asked + (self.max_tokens or ANSWER_TOKENS)

    def body(self, route: ModelRoute) -> dict[str, Any]:
        """The request's fields as the route's provider takes them."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "route"}
        return chat_request_body(said, route)


class ModelClient:
    """Every model that this process can ask, each by the provider that serves it."""

    def __init__(self, settings: Settings, providers: Providers, limiter: ProviderLimiter | None = None) -> None:
        """Without `limiter` the providers' limits are not looked at."""
        self._settings = settings
        self._providers = providers
        self._limiter = limiter
        self._circuit_breaker = CircuitBreaker()
        self._provider_by_name: dict[str, Provider] = {}

    @classmethod
    def from_settings(cls, settings: Settings, limiter: ProviderLimiter | None = None) -> Self:
        """The models of the providers file; without one, any name goes to the one provider.

        Raises:
            BadProviders: the file does not hold.
        """
        return cls(settings, Providers.from_settings(settings), limiter)

    def abilities(self, name: str) -> Abilities:
        """What the model under a name can do; `tools` says whether it calls them natively.

        Raises:
            UnknownModel: no provider serves it.
        """
        return self._providers.abilities(name)

    def routes(self, name: str) -> list[ModelRoute]:
        """Who may be asked for the name: it first, then its fallbacks; those that failed just now last.

        Raises:
            UnknownModel: no provider serves it.
        """
        return self._circuit_breaker.order(self._providers.routes(name), time.monotonic())

    def reserve(self, route: ModelRoute, request: ModelRequest) -> AbstractAsyncContextManager[TokenReservation]:
        """Hold one of the provider's slots, and tokens, for which this may wait long; at once where it has no limits."""
        entry = self._providers.by_name[route.provider]
        estimate = 0 if entry.tokens_per_minute_max is None else request.estimate_tokens()
        return (
            nullcontext(TokenReservation(0))
            if self._limiter is None
            else self._limiter.reserve(route.provider, entry, estimate)
        )

    def record_failure(self, route: ModelRoute, retry_after_s: float | None) -> None:
        """Remember that a route gave nothing: where there are others, they are asked first for a while."""
        self._circuit_breaker.record_failure(route, time.monotonic(), retry_after_s)

    def record_success(self, route: ModelRoute) -> None:
        """Remember that a route answers."""
        self._circuit_breaker.record_success(route)

    def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """Ask, and yield the answer's chunks as they arrive.

        Use it within `contextlib.aclosing`: closing it closes the provider's connection,
        so that no more tokens are paid for.

        Raises:
            UnknownModel: no provider serves it.
            ModelUnavailable: refused, overloaded, silent or cut; may be asked again,
                after `retry_after_s` where that is set.
            ModelRejected: this request will never be answered.
            ModelUnauthorized: the operator's key is missing or not accepted.
            ModelOutputTooLong: the model does not stop.
        """
        route = request.route or self._providers.routes(request.model)[0]
        return self._provider(route.provider).stream(request.body(route))

    async def warm_up(self) -> None:
        """Build what a first request would build: 190 ms of CPU, which no run should wait for. Asks nobody."""
        for name in self._providers.by_name:
            self._provider(name)

    async def aclose(self) -> None:
        """Close all connections."""
        for provider in self._provider_by_name.values():
            await provider.aclose()
        if self._limiter is not None:
            await self._limiter.aclose()

    def _provider(self, name: str) -> Provider:
        if name not in self._provider_by_name:
            self._provider_by_name[name] = Provider(name, self._providers.by_name[name], self._settings)
        return self._provider_by_name[name]
