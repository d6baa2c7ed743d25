"""The parameters of `POST /runs` that go to the model: one value for all stages, or one for each."""

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Discriminator, Field, Tag

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.shared.domain.requests import PerStage

TOKENS_MAX: Final = 10_000_000
TEMPERATURE_MAX: Final = 2.0
STOP_MAX: Final = 4
STOP_MAX_CHARS: Final = 256
SEED_MAX: Final = 2**63 - 1

T = TypeVar("T")


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, list) else "one"


def _stop_or_each(value: Any) -> str:
    is_each = isinstance(value, list) and any(part is None or isinstance(part, list) for part in value)
    return "each" if is_each else "many" if isinstance(value, list) else "one"


Pair = Annotated[list[T | None], Field(min_length=2, max_length=2)]
OneOrEach = Annotated[Annotated[T, Tag("one")] | Annotated[Pair[T], Tag("each")], Discriminator(_one_or_each)]

Stop = Annotated[str, Field(min_length=1, max_length=STOP_MAX_CHARS)]
Stops = Annotated[list[Stop], Field(min_length=1, max_length=STOP_MAX)]
StageStops = Annotated[
    Annotated[Stop, Tag("one")] | Annotated[Stops, Tag("many")] | Annotated[Pair[Stops], Tag("each")],
    Discriminator(_stop_or_each),
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
ServiceTier = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,31}$")]


class TextFormat(WireModel):
    """The answer is text."""

    type: Literal["text"] = Field(description="the format's type")


class JsonObjectFormat(WireModel):
    """The answer is a JSON object."""

    type: Literal["json_object"] = Field(description="the format's type")


class NamedSchema(WireModel):
    """A JSON Schema with a name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="tells the model what the answer is")
    description: str | None = Field(default=None, description="more about it, for the model")
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON Schema of the answer")
    strict: bool | None = Field(
        default=None, description="the provider must follow the schema exactly, if it can; it then takes fewer keywords"
    )


class JsonSchemaFormat(WireModel):
    """The answer is JSON that fits a schema."""

    type: Literal["json_schema"] = Field(description="the format's type")
    json_schema: NamedSchema = Field(description="the schema")


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ModelParameters(WireModel):
    """Parameters of the requests to the model. The provider decides on those that are omitted."""

    max_tokens: OneOrEach[Annotated[int, Field(ge=1, le=TOKENS_MAX)]] | None = Field(
        default=None, description="limit for the answer of a stage: one number, or `[extraction, synthesis]`"
    )
    temperature: OneOrEach[Annotated[float, Field(ge=0, le=TEMPERATURE_MAX)]] | None = Field(
        default=None, description="randomness: one number, or `[extraction, synthesis]`"
    )
    top_p: OneOrEach[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        default=None, description="nucleus sampling: one number, or `[extraction, synthesis]`"
    )
    stop: StageStops | None = Field(
        default=None,
        description=f"texts before which the answer ends: one, up to {STOP_MAX}, or a list of them for each stage",
    )
    seed: OneOrEach[Annotated[int, Field(ge=-SEED_MAX, le=SEED_MAX)]] | None = Field(
        default=None,
        description="makes answers repeatable, as far as the provider can: one number, or one for each stage",
    )
    reasoning_effort: OneOrEach[Effort] | None = Field(
        default=None, description="how much the model reasons before it answers: one word, or `[extraction, synthesis]`"
    )
    verbosity: OneOrEach[Verbosity] | None = Field(
        default=None, description="how long answers are: one word, or `[extraction, synthesis]`"
    )
    service_tier: OneOrEach[ServiceTier] | None = Field(
        default=None, description="the provider's class of service, such as `flex`: one word, or one for each stage"
    )
    response_format: ResponseFormat | None = Field(
        default=None,
        description="the form of the answer. With `json_schema`, the answer is validated; if it does not fit, the model is "
        "asked once more, and then the run fails with `invalid_output`",
    )

    def per_stage(self, name: str) -> PerStage[Any]:
        """Returns the values of a parameter for extraction and synthesis."""
        value = getattr(self, name)
        if name == "stop":
            value = [value] if isinstance(value, str) else value
            is_each = isinstance(value, list) and not isinstance(value[0] or value[1], str)
        else:
            is_each = isinstance(value, list)
        return (value[0], value[1]) if is_each else (value, value)
