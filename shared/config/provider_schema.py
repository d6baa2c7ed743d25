"""What a providers file may say: each key with its limits, as pydantic models; sans-IO."""

import re
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stagebus.shared.config.config_file import ConfigEntry, Secret

ANY: Final = "*"
NAME_PATTERN: Final = r"^[\x21-\x7e]{1,200}$"
PROVIDER_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
HEADER_PATTERN: Final = r"^[A-Za-z0-9-]{1,64}$"
MODELS_MAX: Final = 1000
PROVIDERS_MAX: Final = 100
FALLBACKS_MAX: Final = 8
PRICE_MAX: Final = 10**9
# The one form of reasoning that is no text: blocks, which only who made them takes back.
REASONING_DETAILS: Final = "reasoning_details"

# What Stagebus itself says in a request; extra_body adds to it and overrides none of it.
_OUR_FIELDS: Final = frozenset({"model", "messages", "stream", "tools"})

ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Price(ConfigEntry):
    """What a million tokens of a model cost, in the file's currency."""

    input: float = Field(ge=0, le=PRICE_MAX, description="of prompts")
    output: float = Field(ge=0, le=PRICE_MAX, description="of answers, reasoning included")
    cached: float | None = Field(
        default=None, ge=0, le=PRICE_MAX, description="of those of prompts that the provider had at hand; else as input"
    )


class Abilities(ConfigEntry):
    """What a model can do and how it wants to be asked. The defaults are OpenAI's own ways."""

    tools: Literal["native", "prompted", "none"] = Field(
        default="native",
        description="native: it calls tools itself; prompted: it is told how in words; none: it is offered none",
    )
    worked_example: bool = Field(
        default=False, description="a prompted model is shown a call before the conversation; very small ones need it"
    )
    parallel_tool_calls: bool = Field(
        default=True, description="it can ask for several calls at once; if not, the parameter is not sent"
    )
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the limit on its output is called"
    )
    stream_options: bool = Field(
        default=True, description="it takes stream_options, which asks for usage; some send usage unasked and reject it"
    )
    reasoning_field: Literal["reasoning_content", "reasoning", "reasoning_details"] | None = Field(
        default=None, description="where its reasoning is given back to it together with its calls; else it is not"
    )
    short_call_ids: bool = Field(default=False, description="ids of calls must be nine letters and digits (Mistral)")
    leave_out: list[str] = Field(default=[], max_length=32, description="parameters that it rejects: temperature, say")


class ModelEntry(Abilities):
    """One model of a provider, or many by a name with a `*`. What it does not say, its provider's entry does."""

    name: ModelName = Field(description="what clients say; a * stands for one or more characters")
    id: ModelName | None = Field(default=None, description="what the provider is told; else the name")
    fallbacks: list[ModelName] = Field(
        default=[], max_length=FALLBACKS_MAX, description="models to ask in this one's place while it is down, in order"
    )
    extra_body: dict[str, Any] = Field(default={}, description="further fields of its requests")
    price: Price | None = Field(default=None, description="what it costs; runs say what they cost where it is known")

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name", "id")
    @classmethod
    def _check_star(cls, name: str | None) -> str | None:
        if name is not None and name.count(ANY) > 1:
            raise ValueError("may have one * only")
        return name

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if self.id is not None and ANY in self.id and ANY not in self.name:
            raise ValueError("id has a * and name has none, so nothing could take its place")
        return self

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        return _checked_extra_body(extra_body)

    def abilities_within(self, provider: "ProviderEntry") -> Abilities:
        """This model's abilities: what it says itself over what its provider says of all."""
        names = Abilities.model_fields
        said = {name: getattr(provider, name) for name in names if name in provider.model_fields_set}
        said |= {name: getattr(self, name) for name in names if name in self.model_fields_set}
        return Abilities(**said)


class ProviderEntry(Abilities):
    """One provider; the abilities that it names are those of its models that do not say otherwise."""

    base_url: str = Field(description="such as https://api.openai.com/v1; /chat/completions is put behind it")
    key: Secret | None = Field(default=None, description="none is sent where it is left out")
    auth_header: str = Field(
        default="Authorization", pattern=HEADER_PATTERN, description="who gets the key; Authorization gets `Bearer KEY`"
    )
    headers: dict[Annotated[str, Field(pattern=HEADER_PATTERN)], Secret] = Field(
        default={}, description="further headers; values as key has them"
    )
    query: dict[str, Secret] = Field(default={}, description="query parameters of each request, such as api-version")
    extra_body: dict[str, Any] = Field(default={}, description="further fields of each request")
    connect_timeout_s: float | None = Field(default=None, gt=0, description="else STAGEBUS_MODEL_CONNECT_TIMEOUT_S")
    stall_timeout_s: float | None = Field(default=None, gt=0, description="else STAGEBUS_MODEL_STALL_TIMEOUT_S")
    concurrency_max: int | None = Field(default=None, ge=1, description="answers at once, over all workers")
    requests_per_minute_max: int | None = Field(
        default=None, ge=1, le=100_000, description="requests within any minute, over all workers"
    )
    tokens_per_minute_max: int | None = Field(
        default=None, ge=1, le=10**9, description="tokens a minute, of questions and answers, over all workers"
    )
    models: list[ModelEntry] = Field(min_length=1, max_length=MODELS_MAX, description='names, tables, or "*"')

    @field_validator("models", mode="before")
    @classmethod
    def _take_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http:// or https:// address")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must hold no password; that is what key and headers are for")
        if parts.query or parts.fragment:
            raise ValueError("must have no ? and no #; parameters go to query")
        if re.search(r"/chat/completions/?$", parts.path):
            raise ValueError("must end before /chat/completions")
        return url

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        return _checked_extra_body(extra_body)


def _checked_extra_body(extra_body: dict[str, Any]) -> dict[str, Any]:
    ours = sorted(_OUR_FIELDS & extra_body.keys())
    if ours:
        raise ValueError(f"must not set {', '.join(ours)}")
    return extra_body


class ProvidersFile(ConfigEntry):
    """The whole file."""

    providers: dict[Annotated[str, Field(pattern=PROVIDER_PATTERN)], ProviderEntry] = Field(
        min_length=1, max_length=PROVIDERS_MAX
    )
    aliases: dict[ModelName, Annotated[list[ModelName], Field(min_length=1, max_length=FALLBACKS_MAX)]] = Field(
        default={}, description="further names: the first of their models that is not down answers"
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="of all prices, as ISO 4217 has it")
