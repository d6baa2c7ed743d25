"""What the stages ask: a request to a model by its name, and its answer as chunks."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from shared.provider_entry import Abilities
from shared.providers import Providers
from shared.settings import Settings
from worker.model.chunks import Chunk
from worker.model.provider import Provider, ProviderOptions

_OF_TOOLS: Final = frozenset({"tools", "tool_choice", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What to ask of a model. None leaves a field to the provider."""

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    def body(self) -> dict[str, Any]:
        """The fields that are set. Without tools, what speaks of tools is left out: providers reject it."""
        body = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value for name, value in body.items() if value is not None and (self.tools or name not in _OF_TOOLS)
        }


class Model:
    """Every model that this process can ask, each by the provider that serves it."""

    def __init__(self, provider: Provider, providers: Providers) -> None:
        self._provider = provider
        self._providers = providers

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """With one provider, any model's name goes to it."""
        return cls(Provider(ProviderOptions.from_settings(settings)), Providers.from_settings(settings))

    def abilities(self, name: str) -> Abilities:
        """What the model under a name can do; `tools` says whether it calls them natively.

        Raises:
            UnknownModel: no provider serves it.
        """
        return self._providers.abilities(name)

    def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        """Ask, and yield the answer's chunks as they arrive.

        Use it within `contextlib.aclosing`: closing it closes the provider's connection,
        so that no more tokens are paid for.

        Raises:
            ModelUnavailable: refused, overloaded, silent or cut; may be asked again,
                after `retry_after_s` where that is set.
            ModelRejected: this request will never be answered.
            ModelUnauthorized: the operator's key is not accepted.
            ModelOutputTooLong: the model does not stop.
        """
        return self._provider.stream(request.body())

    async def aclose(self) -> None:
        """Close all connections."""
        await self._provider.aclose()
