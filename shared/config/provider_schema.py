"""The schema of the providers file as pydantic models; sans-IO."""

import re
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stagebus.shared.config.config_file import ConfigEntry, Secret
from stagebus.shared.domain.model_items import Api

ANY: Final = "*"
NAME_PATTERN: Final = r"^[\x21-\x7e]{1,200}$"
PROVIDER_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
HEADER_PATTERN: Final = r"^[A-Za-z0-9-]{1,64}$"
MODELS_MAX: Final = 1000
PROVIDERS_MAX: Final = 100
FALLBACKS_MAX: Final = 8
PRICE_MAX: Final = 10**9
# Also of its regional hosts, such as eu.api.openai.com.
OPENAI_HOST: Final = "api.openai.com"
# The form of reasoning that is not text, but blocks that only their provider understands.
REASONING_DETAILS: Final = "reasoning_details"

# Fields that Stagebus sets in a request; extra_body cannot override them.
_RESERVED_FIELDS: Final = frozenset({"model", "messages", "input", "stream", "tools"})
# OpenAI's models that answer to /responses alone, or that call tools there alone: from gpt-5.4 on, /chat/completions
# refuses tools unless reasoning is off.
# Source: https://platform.openai.com/docs/models
_RESPONSES_MODELS: Final = re.compile(
    r"gpt-(?:5\.(?:[4-9]|\d\d)|[6-9]|\d\d)(?![\d])|.*codex|(?:o\d|gpt-5).*-pro|.*deep-research|computer-use-preview"
)

ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Price(ConfigEntry):
    """The price of a million tokens of a model, in the file's currency."""

    input: float = Field(ge=0, le=PRICE_MAX, description="price of prompt tokens")
    output: float = Field(ge=0, le=PRICE_MAX, description="price of completion tokens, including reasoning")
    cached: float | None = Field(
        default=None, ge=0, le=PRICE_MAX, description="price of cached prompt tokens; default: input"
    )
    cache_write: float | None = Field(
        default=None,
        ge=0,
        le=PRICE_MAX,
        description="price of prompt tokens that the provider wrote to its cache; default: input",
    )


class Abilities(ConfigEntry):
    """The abilities of a model and the form of its requests. The defaults are those of OpenAI."""

    api: Api | None = Field(
        default=None,
        description="the API by which the model is asked: chat (/chat/completions), responses (OpenAI's /responses) or "
        "messages (Anthropic's /v1/messages); default: chat, but responses for models at api.openai.com that need it",
    )
    tools: Literal["native", "prompted", "none"] = Field(
        default="native",
        description="native: the model calls tools by the API; prompted: tools are described in the prompt; none: no tools are offered",
    )
    worked_example: bool = Field(
        default=False, description="show a prompted model an example of a call first; very small models need it"
    )
    parallel_tool_calls: bool = Field(
        default=True, description="the API accepts the parameter parallel_tool_calls; if not, it is not sent"
    )
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="name of the parameter that limits the output"
    )
    stream_options: bool = Field(
        default=True,
        description="the API accepts stream_options, which requests usage; some APIs send usage anyway and reject it",
    )
    reasoning_field: Literal["reasoning_content", "reasoning", "reasoning_details"] | None = Field(
        default=None,
        description="field in which the model's reasoning is sent back together with its calls; default: it is not sent back",
    )
    structured_output: Literal["native", "prompted"] = Field(
        default="native",
        description="native: the API takes response_format; prompted: the form of the answer is described in the prompt",
    )
    short_call_ids: bool = Field(default=False, description="call ids must have nine letters and digits (Mistral)")
    alternating_roles: bool = Field(
        default=False,
        description="messages of the user and of the model must alternate, as some chat templates demand; those of one role "
        "in a row are joined. A model that refuses a request for this reason is asked so from then on",
    )
    context_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="the model's context: the history of a thread must fit it, together with the answer; null: not stated",
    )
    leave_out: list[str] = Field(
        default=[], max_length=32, description="parameters that the API rejects, such as temperature"
    )
    max_tokens_default: int = Field(
        default=32_000,
        ge=1,
        le=10**7,
        description="limit of an answer where the run sets none and the API requires one (messages)",
    )
    reasoning: bool | None = Field(default=None, description="the model reasons before it answers; null: not stated")
    images: bool | None = Field(default=None, description="the model accepts images; null: not stated")
    caching: bool | None = Field(
        default=None,
        description="the provider caches the beginning of a conversation; false: a request has no cache parameters, and "
        "no tools if it may call none; null: not stated, and it has them",
    )


class ModelEntry(Abilities):
    """One model of a provider, or several by a name with `*`. Abilities default to those of the provider's entry."""

    name: ModelName = Field(description="name for clients; a * matches one or more characters")
    id: ModelName | None = Field(default=None, description="model name for the provider; default: name")
    fallbacks: list[ModelName] = Field(
        default=[], max_length=FALLBACKS_MAX, description="models that replace this one while it is down, in this order"
    )
    extra_body: dict[str, Any] = Field(default={}, description="further fields of its requests")
    price: Price | None = Field(default=None, description="price; with it, runs report their cost")

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name", "id")
    @classmethod
    def _check_star(cls, name: str | None) -> str | None:
        if name is not None and name.count(ANY) > 1:
            raise ValueError("must have at most one *")
        return name

    @model_validator(mode="after")
    def _check_id(self) -> Self:
        if self.id is not None and ANY in self.id and ANY not in self.name:
            raise ValueError("id has a * but name has none, so there is nothing to replace it with")
        return self

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        return _checked_extra_body(extra_body)

    def abilities_within(self, provider: "ProviderEntry") -> Abilities:
        """Returns the model's abilities: those of its entry, then those of its provider, then the defaults."""
        names = Abilities.model_fields
        explicit = {name: getattr(provider, name) for name in names if name in provider.model_fields_set}
        explicit |= {name: getattr(self, name) for name in names if name in self.model_fields_set}
        return Abilities(**explicit)


class ProviderEntry(Abilities):
    """One provider. Its abilities are the defaults for its models."""

    base_url: str = Field(
        description="such as https://api.openai.com/v1; /chat/completions, or the path of another api, is appended"
    )
    path: str | None = Field(
        default=None,
        pattern=r"^/[\x21\x22\x24-\x3e\x40-\x7e]{1,400}$",  # neither ? nor #
        description="path that is appended instead; {model} is replaced by the model's id",
    )
    key: Secret | None = Field(default=None, description="API key; none is sent by default")
    auth_header: str | None = Field(
        default=None,
        pattern=HEADER_PATTERN,
        description="header with the key; in Authorization it is sent as `Bearer KEY`; default: Authorization, and "
        "x-api-key for the api messages",
    )
    headers: dict[Annotated[str, Field(pattern=HEADER_PATTERN)], Secret] = Field(
        default={}, description="further headers; the values have the same forms as key"
    )
    query: dict[str, Secret] = Field(default={}, description="query parameters of each request, such as api-version")
    extra_body: dict[str, Any] = Field(default={}, description="further fields of each request")
    connect_timeout_s: float | None = Field(default=None, gt=0, description="default: STAGEBUS_MODEL_CONNECT_TIMEOUT_S")
    stall_timeout_s: float | None = Field(default=None, gt=0, description="default: STAGEBUS_MODEL_STALL_TIMEOUT_S")
    concurrency_max: int | None = Field(default=None, ge=1, description="most concurrent requests over all workers")
    requests_per_minute_max: int | None = Field(
        default=None, ge=1, le=100_000, description="most requests in any minute over all workers"
    )
    tokens_per_minute_max: int | None = Field(
        default=None, ge=1, le=10**9, description="most prompt and completion tokens per minute over all workers"
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
            raise ValueError("must be an http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not contain a password; use key or headers")
        if parts.query or parts.fragment:
            raise ValueError("must not contain ? or #; parameters belong in query")
        if ending := re.search(r"/(chat/completions|responses|messages)/?$", parts.path):
            raise ValueError(f"must not end in /{ending[1]}, which is appended")
        return url

    def default_api(self, model_id: str) -> Api:
        """Returns the API of a model for which the file states none."""
        host = urlsplit(self.base_url).hostname or ""
        is_openai = host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")
        return "responses" if is_openai and _RESPONSES_MODELS.match(model_id) else "chat"

    @field_validator("extra_body")
    @classmethod
    def _check_extra_body(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        return _checked_extra_body(extra_body)


def _checked_extra_body(extra_body: dict[str, Any]) -> dict[str, Any]:
    reserved = sorted(_RESERVED_FIELDS & extra_body.keys())
    if reserved:
        raise ValueError(f"must not set {', '.join(reserved)}")
    return extra_body


class ProvidersFile(ConfigEntry):
    """The providers file."""

    providers: dict[Annotated[str, Field(pattern=PROVIDER_PATTERN)], ProviderEntry] = Field(
        min_length=1, max_length=PROVIDERS_MAX
    )
    aliases: dict[ModelName, Annotated[list[ModelName], Field(min_length=1, max_length=FALLBACKS_MAX)]] = Field(
        default={}, description="further names, each for a list of models; the first one that is not down answers"
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="currency of all prices, an ISO 4217 code")
