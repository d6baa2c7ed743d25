"""The providers file: which provider serves which model, with which key, and the abilities of each model.

    [providers.openai]
    base_url = "https://api.openai.com/v1"
    key = { env = "OPENAI_API_KEY" }
    concurrency_max = 50
    models = ["gpt-4.1", { name = "fast", id = "gpt-4.1-mini", fallbacks = ["gpt-4.1"] }]

    [aliases]
    best = ["gpt-4.1", "fast"]

Gateways use the names, abilities and prices, workers the whole file. A worker reads a key only when it calls the
provider. Without a file there is one provider, that of `OPENAI_BASE_URL`, for every model name.
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
from stagebus.shared.domain.model_items import Api
from stagebus.shared.domain.usage import COST_DECIMALS, Cost, Usage
from stagebus.shared.errors import BadProviders, UnknownModel

# The name of the only provider if there is no file.
DEFAULT_PROVIDER: Final = "default"
_KIND: Final = ConfigKind("STAGEBUS_PROVIDERS", "docs/providers.md", BadProviders)
TOKENS_PRICED: Final = 1_000_000  # prices are per this number of tokens
# The parameters of a run that an API does not have.
_UNKNOWN_PARAMETERS: Final[Mapping[Api, frozenset[str]]] = {
    "chat": frozenset(),
    "responses": frozenset({"stop", "seed"}),
    "messages": frozenset({"seed", "verbosity", "service_tier"}),
}
OPENAI_URL: Final = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """A model name of clients, with the provider and the provider's model that answer for it."""

    name: str
    provider: str
    model_id: str
    abilities: Abilities
    extra_body: Mapping[str, Any]
    listed: str = ""  # the name in the file, which may contain a `*`
    price: Price | None = None
    currency: str = ""
    is_api_stated: bool = True  # in the file; if not, the provider's refusal may change it

    @property
    def api(self) -> Api:
        """Returns the API by which the model is asked."""
        return self.abilities.api or "chat"

    def ignored(self, names: Iterable[str]) -> list[str]:
        """Returns those of the parameters that the model does not take."""
        unknown = _UNKNOWN_PARAMETERS[self.api]
        return [name for name in names if name in self.abilities.leave_out or name in unknown]

    def cost(self, usage: Usage) -> Cost | None:
        """Returns the cost of the tokens, or None if the model has no price."""
        if self.price is None:
            return None
        price = self.price
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        written = min(usage.cache_write_tokens or 0, usage.prompt_tokens - cached)
        amount = (usage.prompt_tokens - cached - written) * price.input
        amount += cached * (price.input if price.cached is None else price.cached)
        amount += written * (price.input if price.cache_write is None else price.cache_write)
        # Some providers count reasoning only in the total.
        amount += max(usage.completion_tokens, usage.total_tokens - usage.prompt_tokens) * price.output
        return Cost(amount=round(amount / TOKENS_PRICED, COST_DECIMALS), currency=self.currency)


class Providers:
    """All providers by name, and the routes from model names to them."""

    def __init__(self, file: ProvidersFile, default_model: str = "") -> None:
        """`default_model` is for runs that name none; if it is empty, they must name one."""
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
        """Reads the providers file of the settings, or creates the provider of `OPENAI_BASE_URL`.

        Raises:
            BadProviders: the file is invalid; the message says what to change.
        """
        if settings.providers is not None:
            return cls._of_file(settings.providers, settings)
        key = settings.openai_api_key
        has_key = key is not None and key.get_secret_value().strip()
        try:
            entry = ProviderEntry(
                base_url=settings.openai_base_url or OPENAI_URL,
                key=Secret(value=key) if has_key else None,
                api=settings.provider_api,
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
            raise BadProviders(f"STAGEBUS_MODEL does not fit {path}: {exc}") from None
        return providers

    def entries(self) -> Iterator[tuple[str, ModelEntry]]:
        """Yields each model with the name of its provider, in the order of the file."""
        for provider, entry in self.by_name.items():
            for model in entry.models:
                yield provider, model

    def apis(self) -> set[Api]:
        """Returns the APIs by which models may be asked."""
        routes = ((self.by_name[provider], model) for provider, model in self.entries())
        return {
            model.abilities_within(entry).api or entry.default_api(model.id or model.name) for entry, model in routes
        }

    def names(self) -> list[str]:
        """Returns all names without a `*`, aliases first."""
        return [*self.aliases, *self._exact]

    def patterns(self) -> list[str]:
        """Returns the names with a `*`."""
        return [model.name for _, model in self._patterns]

    def routes(self, name: str) -> tuple[ModelRoute, ...]:
        """Returns the routes for a model name, the preferred one first.

        Raises:
            UnknownModel: no provider serves it.
        """
        if name in self.aliases:
            return tuple(self._route(target) for target in self.aliases[name])
        _, model = self._find(name)
        return tuple(self._route(target) for target in (name, *model.fallbacks))

    def abilities(self, name: str) -> Abilities:
        """Returns the abilities of a model; if it has fallbacks, those of the preferred model.

        Raises:
            UnknownModel: no provider serves it.
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
        model_id = (model.id or model.name).replace(ANY, _matched(model.name, name) or "")
        abilities = model.abilities_within(entry)
        return ModelRoute(
            name=name,
            provider=provider,
            model_id=model_id,
            abilities=abilities.model_copy(update={"api": abilities.api or entry.default_api(model_id)}),
            is_api_stated=abilities.api is not None,
            extra_body={**entry.extra_body, **model.extra_body},
            listed=model.name,
            price=model.price,
            currency=self.currency,
        )


def _matched(pattern: str, name: str) -> str | None:
    """Returns the part of the name that the pattern's `*` matches, or None if the pattern does not match."""
    before, star, after = pattern.partition(ANY)
    if not star:
        return "" if pattern == name else None
    is_match = len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after)
    return name[len(before) : len(name) - len(after)] if is_match else None


def read_file(path: Path) -> ProvidersFile:
    """Reads and validates a providers file.

    Raises:
        BadProviders: the file is invalid.
    """
    parsed = _KIND.read(path, ProvidersFile)
    faults = list(_check_names(parsed))
    if faults:
        raise _KIND.invalid(path, faults)
    return parsed


def check_variables(settings: Settings) -> None:
    """Checks that every environment variable that the providers file names is set. Gateways need none of them.

    Raises:
        BadProviders: some are not; the message names them.
    """
    if settings.providers is not None:
        _KIND.check_variables(settings.providers, read_file(settings.providers))


def _check_names(file: ProvidersFile) -> Iterator[str]:
    """Yields the faults across entries: duplicate names, and names that no provider serves."""
    seen: dict[str, str] = {}
    for provider, entry in file.providers.items():
        for model in entry.models:
            if model.name in seen:
                yield (
                    f"providers.{provider}.models: {model.name!r} is already served by {seen[model.name]!r}; "
                    "give one of them another name, with the original one as its id"
                )
            seen[model.name] = provider
    routes = Providers(file)
    for alias, targets in file.aliases.items():
        if alias in seen:
            yield f"aliases.{alias}: is also the name of a model; rename the alias"
        yield from _unserved(routes, f"aliases.{alias}", targets)
    for provider, entry in file.providers.items():
        for model in entry.models:
            yield from _unserved(routes, f"providers.{provider}.models.{model.name}.fallbacks", model.fallbacks)


def _unserved(routes: Providers, where: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            routes._find(name)  # noqa: SLF001 - an alias may not refer to another alias
        except UnknownModel:
            yield f"{where}: no provider serves {name!r}"
