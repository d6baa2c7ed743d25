"""The answer to `GET /models`."""

from collections.abc import Sequence

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.config.provider_schema import ANY, Abilities
from stagebus.shared.config.providers import ModelRoute, Providers


class ModelPrice(Answer):
    """The price of a million tokens of a model."""

    input: float = Field(description="prompt tokens")
    output: float = Field(description="completion tokens")
    cached: float = Field(description="prompt tokens that the provider read from its cache")
    cache_write: float = Field(description="prompt tokens that the provider wrote to its cache")
    currency: str = Field(description="ISO 4217 code")


class ModelView(Answer):
    """A model that a run may use."""

    id: str = Field(description="the name to use in a run")
    is_default: bool = Field(description="used for runs that name no model")
    provider: str = Field(description="the provider's name in the configuration")
    abilities: Abilities = Field(description="the model's abilities, as configured")
    fallbacks: list[str] = Field(description="the models that replace it while it is unavailable, in order")
    price: ModelPrice | None = Field(description="the configured price; null if none is set")


class ModelList(Answer):
    """The models that a run may use."""

    models: list[ModelView] = Field(description="the models and aliases that have a name")
    patterns: list[str] = Field(description="patterns of further names; `*` matches any text")
    any_model: bool = Field(description="whether a provider accepts any other name")

    @classmethod
    def of(cls, providers: Providers, default: str) -> "ModelList":
        """Returns the models of all providers."""
        names = dict.fromkeys([*providers.names(), *([default] if default else [])])
        patterns = providers.patterns()
        return cls(
            models=[_model_view(name, providers.routes(name), default) for name in names],
            patterns=[pattern for pattern in patterns if pattern != ANY],
            any_model=ANY in patterns,
        )


def _model_view(name: str, routes: Sequence[ModelRoute], default: str) -> ModelView:
    first, *fallbacks = routes
    if first.name != name:  # an alias for all of them
        fallbacks = [*routes]
    return ModelView(
        id=name,
        is_default=name == default,
        provider=first.provider,
        abilities=first.abilities,
        fallbacks=[route.name for route in fallbacks],
        price=_price_view(first),
    )


def _price_view(route: ModelRoute) -> ModelPrice | None:
    price = route.price
    if price is None:
        return None
    cached = price.input if price.cached is None else price.cached
    cache_write = price.input if price.cache_write is None else price.cache_write
    return ModelPrice(
        input=price.input, output=price.output, cached=cached, cache_write=cache_write, currency=route.currency
    )
