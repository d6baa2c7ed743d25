"""The providers file: who serves which model, with what key, and what each model can do.

    [providers.openai]
    base_url = "https://api.openai.com/v1"
    key = { env = "OPENAI_API_KEY" }
    concurrency_max = 50
    models = ["gpt-4.1", { name = "fast", id = "gpt-4.1-mini", fallbacks = ["gpt-4.1"] }]

    [aliases]
    best = ["gpt-4.1", "fast"]

Gateways read names, abilities and prices of it, workers all; a key is looked up only when a worker
asks its provider. Without a file there is one provider, of `OPENAI_BASE_URL`, for every name.
Spec: https://toml.io/en/v1.0.0
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import ValidationError

from stagebus.shared.config.config_file import ConfigKind, Secret
from stagebus.shared.config.provider_schema import ANY, Abilities, ModelEntry, Price, ProviderEntry, ProvidersFile
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.usage import COST_DECIMALS, Cost, Usage
from stagebus.shared.errors import BadProviders, UnknownModel

# The one provider that there is without a file.
DEFAULT_PROVIDER: Final = "default"
_KIND: Final = ConfigKind("STAGEBUS_PROVIDERS", "docs/providers.md", BadProviders)
TOKENS_PRICED: Final = 1_000_000  # what prices are of
OPENAI_URL: Final = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One way to an answer: a model's name, as clients say it, and who is asked for what."""

    name: str
    provider: str
    model_id: str
    abilities: Abilities
    extra_body: Mapping[str, Any]
    listed: str = ""  # the name as the file has it, which may have a `*` where a client's own words stand
    price: Price | None = None
    currency: str = ""

    def cost(self, usage: Usage) -> Cost | None:
        """What these tokens cost here; None where the model has no price."""
        if self.price is None:
            return None
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        cached_price = self.price.input if self.price.cached is None else self.price.cached
        amount = (usage.prompt_tokens - cached) * self.price.input + cached * cached_price
        # Some providers count reasoning in the total alone.
        amount += max(usage.completion_tokens, usage.total_tokens - usage.prompt_tokens) * self.price.output
        return Cost(amount=round(amount / TOKENS_PRICED, COST_DECIMALS), currency=self.currency)


class Providers:
    """Every provider by its name, and the way from a model's name to them."""

    def __init__(self, file: ProvidersFile, default_model: str = "") -> None:
        """`default_model` is for runs that name none; empty where they have to."""
        self.default_model = default_model
        self.by_name: Mapping[str, ProviderEntry] = file.providers
        self.aliases: Mapping[str, list[str]] = file.aliases
        self.currency = file.currency
        self._exact: dict[str, tuple[str, ModelEntry]] = {}
        self._patterns: list[tuple[str, ModelEntry]] = []
        for provider, model in self.entries():
            if ANY in model.name:
                self._patterns.append((provider, model))
            else:
                self._exact[model.name] = (provider, model)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Those of the file that the settings name, or the one of `OPENAI_BASE_URL`.

        Raises:
            BadProviders: the file does not hold; the message says what to change in it.
        """
        if settings.providers is not None:
            return cls._of_file(settings.providers, settings)
        key = settings.openai_api_key
        has_key = key is not None and key.get_secret_value().strip()
        try:
            entry = ProviderEntry(
                base_url=settings.openai_base_url or OPENAI_URL,
                key=Secret(value=key) if has_key else None,
                models=[ModelEntry(name=ANY)],
            )
        except ValidationError as exc:
            reason = str(exc.errors()[0]["msg"]).removeprefix("Value error, ")
            raise BadProviders(f"OPENAI_BASE_URL {reason}") from None
        return cls(ProvidersFile(providers={DEFAULT_PROVIDER: entry}), settings.model)

    @classmethod
    def _of_file(cls, path: Path, settings: Settings) -> Self:
        providers = cls(read_file(path))
        if "model" not in settings.model_fields_set:
            providers.default_model = next(iter(providers.names()), "")
            return providers
        providers.default_model = settings.model
        try:
            providers.routes(settings.model)
        except UnknownModel as exc:
            raise BadProviders(f"STAGEBUS_MODEL does not go with {path}: {exc}") from None
        return providers

    def entries(self) -> Iterator[tuple[str, ModelEntry]]:
        """Yield each model with its provider's name, as the file lists them."""
        for provider, entry in self.by_name.items():
            for model in entry.models:
                yield provider, model

    def names(self) -> list[str]:
        """Every name that stands in the file as it is, aliases first."""
        return [*self.aliases, *self._exact]

    def patterns(self) -> list[str]:
        """The names with a `*` that others are matched with."""
        return [model.name for _, model in self._patterns]

    def routes(self, name: str) -> tuple[ModelRoute, ...]:
        """The ways to an answer under a name, the preferred one first.

        Raises:
            UnknownModel: nobody serves it.
        """
        if name in self.aliases:
            return tuple(self._route(target) for target in self.aliases[name])
        _, model = self._find(name)
        return tuple(self._route(target) for target in (name, *model.fallbacks))

    def abilities(self, name: str) -> Abilities:
        """What the model under a name can do: the preferred one, where it has fallbacks.

        Raises:
            UnknownModel: nobody serves it.
        """
        return self.routes(name)[0].abilities

    def _find(self, name: str) -> tuple[str, ModelEntry]:
        if name in self._exact:
            return self._exact[name]
        for provider, model in self._patterns:
            if _matched(model.name, name) is not None:
                return provider, model
        raise UnknownModel(name, [*self.names(), *self.patterns()])

    def _route(self, name: str) -> ModelRoute:
        provider, model = self._find(name)
        entry = self.by_name[provider]
        return ModelRoute(
            name=name,
            provider=provider,
            model_id=(model.id or model.name).replace(ANY, _matched(model.name, name) or ""),
            abilities=model.abilities_within(entry),
            extra_body={**entry.extra_body, **model.extra_body},
            listed=model.name,
            price=model.price,
            currency=self.currency,
        )


def _matched(pattern: str, name: str) -> str | None:
    """What the pattern's `*` stands for in the name; None where it does not match."""
    before, star, after = pattern.partition(ANY)
    if not star:
        return "" if pattern == name else None
    is_match = len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after)
    return name[len(before) : len(name) - len(after)] if is_match else None


def read_file(path: Path) -> ProvidersFile:
    """Read and check a providers file.

    Raises:
        BadProviders: it does not hold.
    """
    parsed = _KIND.read(path, ProvidersFile)
    wrong = list(_check_names(parsed))
    if wrong:
        raise _KIND.bad(path, wrong)
    return parsed


def _check_names(file: ProvidersFile) -> Iterator[str]:
    """What only the whole file shows: names that stand twice, and names of nobody."""
    seen: dict[str, str] = {}
    for provider, entry in file.providers.items():
        for model in entry.models:
            if model.name in seen:
                yield (
                    f"providers.{provider}.models: {model.name!r} is served by {seen[model.name]!r} already; "
                    "give one of them another name, and its id beside it"
                )
            seen[model.name] = provider
    routes = Providers(file)
    for alias, targets in file.aliases.items():
        if alias in seen:
            yield f"aliases.{alias}: is the name of a model, too; give the alias another one"
        yield from _unserved(routes, f"aliases.{alias}", targets)
    for provider, entry in file.providers.items():
        for model in entry.models:
            yield from _unserved(routes, f"providers.{provider}.models.{model.name}.fallbacks", model.fallbacks)


def _unserved(routes: Providers, where: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            routes._find(name)  # noqa: SLF001 - aliases of aliases are not wanted here
        except UnknownModel:
            yield f"{where}: no provider serves {name!r}"
