"""The body of POST /runs: its model, and the stored request that it becomes."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import ConfigDict, Discriminator, Field, Tag

from stagebus.gateway.api.schemas.chat_messages import Message, WireModel
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.config.provider_schema import NAME_PATTERN
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.runs import ROUNDS_MAX
from stagebus.shared.errors import InvalidRequest, UnknownModel

TOOL_NAME_PATTERN: Final = r"^[A-Za-z0-9_.-]{1,64}$"
MESSAGES_MAX: Final = 1000
TOOLS_MAX: Final = 128
TOKENS_MAX: Final = 10_000_000
TEMPERATURE_MAX: Final = 2.0
METADATA_MAX: Final = 16
MODEL_FIELDS: Final = ("model.extraction", "model.synthesis")
METADATA_KEY_MAX_CHARS: Final = 64
METADATA_VALUE_MAX_CHARS: Final = 512
TOOL_CHOICES: Final = frozenset({"auto", "none", "required"})

T = TypeVar("T")


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, list) else "one"


def _name_or_stages(value: Any) -> str:
    return "stages" if isinstance(value, dict) else "name"


def _word_or_tool(value: Any) -> str:
    return "tool" if isinstance(value, dict) else "word"


ToolName = Annotated[str, Field(pattern=TOOL_NAME_PATTERN)]


class ToolChoiceFunction(WireModel):
    """The function of a `NamedToolChoice`."""

    name: ToolName


class NamedToolChoice(WireModel):
    """The model has to call this tool."""

    type: Literal["function"]
    function: ToolChoiceFunction


ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class StageModels(WireModel):
    """A model for each stage that asks one; a stage that is left out gets the operator's own choice."""

    extraction: ModelName | None = None
    synthesis: ModelName | None = None


StageModel = Annotated[
    Annotated[ModelName, Tag("name")] | Annotated[StageModels, Tag("stages")], Discriminator(_name_or_stages)
]
ToolChoice = Annotated[
    Annotated[ToolName, Tag("word")] | Annotated[NamedToolChoice, Tag("tool")], Discriminator(_word_or_tool)
]
Tokens = Annotated[int, Field(ge=1, le=TOKENS_MAX)]
Temperature = Annotated[float, Field(ge=0, le=TEMPERATURE_MAX)]
TokensEach = Annotated[list[Tokens | None], Field(min_length=2, max_length=2)]
TemperatureEach = Annotated[list[Temperature | None], Field(min_length=2, max_length=2)]
StageTokens = Annotated[Annotated[Tokens, Tag("one")] | Annotated[TokensEach, Tag("each")], Discriminator(_one_or_each)]
StageTemperature = Annotated[
    Annotated[Temperature, Tag("one")] | Annotated[TemperatureEach, Tag("each")], Discriminator(_one_or_each)
]
MetadataKey = Annotated[str, Field(min_length=1, max_length=METADATA_KEY_MAX_CHARS)]
MetadataValue = Annotated[str, Field(max_length=METADATA_VALUE_MAX_CHARS)]


class CreateRun(WireModel):
    """A new run. Exactly one of `user_prompt` and `messages` says what is asked."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["user_prompt"],
                    "properties": {"user_prompt": {"type": "string"}, "messages": {"type": "null"}},
                },
                {
                    "required": ["messages"],
                    "properties": {
                        "messages": {"type": "array"},
                        "user_prompt": {"type": "null"},
                        "system_prompt": {"type": "null"},
                    },
                },
            ]
        }
    )

    model: StageModel | None = Field(
        default=None,
        description="a model's name, or {extraction, synthesis} with one each; the operator's own choice where left out",
    )
    user_prompt: str | None = Field(default=None, min_length=1, description="what the user asks")
    system_prompt: str | None = Field(
        default=None, min_length=1, description="what the model is told to be; goes with user_prompt"
    )
    messages: list[Message] | None = Field(
        default=None, min_length=1, max_length=MESSAGES_MAX, description="a conversation, as chat completions have it"
    )
    tools: list[ToolName] | None = Field(
        default=None, max_length=TOOLS_MAX, description="names of tools to offer; all by default, none with []"
    )
    tool_choice: ToolChoice = Field(
        default="auto", description="auto, none, required, or the tool to call: its name or chat completions' object"
    )
    parallel_tool_calls: bool | None = Field(default=None, description="whether the model may ask for calls at once")
    synthesis: bool = Field(default=True, description="whether the model writes an answer from the tools' results")
    max_tokens: StageTokens | None = Field(default=None, description="one number, or [extraction, synthesis]")
    temperature: StageTemperature | None = Field(default=None, description="one number, or [extraction, synthesis]")
    max_rounds: int = Field(default=1, ge=1, le=ROUNDS_MAX, description="how often the model may ask for tools")
    timeout_s: float | None = Field(default=None, gt=0, description="the run's time limit, within the operator's")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default={}, max_length=METADATA_MAX, description="the client's own notes, given back with the run"
    )


def parse_create_run(body: dict[str, Any], settings: Settings, providers: Providers | None = None) -> RunRequest:
    """The request that a body asks for, with every default filled in.

    Args:
        providers: who serves the models; without them a model's name is not looked at.

    Raises:
        InvalidRequest: it does not hold; every wrong field is named.
    """
    form = parse_form(CreateRun, body)
    wrong = [*_check_prompt(form), *_check_tools(form)]
    if form.timeout_s is not None and form.timeout_s > settings.run_timeout_max_s:
        wrong.append(("timeout_s", f"at most {settings.run_timeout_max_s:g} s"))
    model = _model(form.model, settings.model if providers is None else providers.default_model)
    wrong += _check_models(model, providers)
    if wrong:
        raise invalid_fields(wrong)
    return RunRequest(
        model=model,
        messages=_messages(form),
        tools=form.tools,
        tool_choice=_tool_choice(form.tool_choice),
        parallel_tool_calls=form.parallel_tool_calls,
        synthesis=form.synthesis,
        max_tokens=_each(form.max_tokens),
        temperature=_each(form.temperature),
        max_rounds=form.max_rounds,
        timeout_s=settings.run_timeout_s if form.timeout_s is None else form.timeout_s,
        metadata=form.metadata,
    )


def named_tools(request: RunRequest) -> list[str]:
    """Every tool that a request names."""
    named = list(request.tools or [])
    if isinstance(request.tool_choice, dict):
        named.append(request.tool_choice["function"]["name"])
    return named


def unknown_tools(request: RunRequest, unknown: set[str]) -> InvalidRequest:
    """The error of a request that names tools which no worker has."""
    where = {name: f"tools.{at}" for at, name in enumerate(request.tools or [])}
    return invalid_fields(
        [
            (where.get(name, "tool_choice"), f"there is no tool {name!r}; GET /tools lists those that there are")
            for name in sorted(unknown)
        ]
    )


def _model(asked: str | StageModels | None, default: str) -> str | tuple[str, str]:
    if isinstance(asked, StageModels):
        return asked.extraction or default, asked.synthesis or default
    return asked or default


def _check_models(model: str | tuple[str, str], providers: Providers | None) -> Iterator[tuple[str, str]]:
    names = {"model": model} if isinstance(model, str) else dict(zip(MODEL_FIELDS, model, strict=True))
    for field, name in names.items():
        try:
            if not name:
                yield field, "needed, as the operator has chosen none; GET /models lists those that there are"
            elif providers is not None:
                providers.routes(name)
        except UnknownModel as exc:
            yield field, str(exc)


def _messages(form: CreateRun) -> list[dict[str, Any]]:
    if form.messages is not None:
        return [message.model_dump(exclude_unset=True) for message in form.messages]
    system = [] if form.system_prompt is None else [{"role": "system", "content": form.system_prompt}]
    return [*system, {"role": "user", "content": form.user_prompt}]


def _tool_choice(choice: str | NamedToolChoice) -> str | dict[str, Any]:
    if isinstance(choice, NamedToolChoice):
        return choice.model_dump()
    return choice if choice in TOOL_CHOICES else {"type": "function", "function": {"name": choice}}


def _each(value: T | list[T | None] | None) -> tuple[T | None, T | None]:
    if isinstance(value, list):
        return value[0], value[1]
    return value, value


def _check_prompt(form: CreateRun) -> Iterator[tuple[str, str]]:
    if form.messages is None and form.user_prompt is None:
        yield "user_prompt", "needed, or messages in its place"
    if form.messages is not None and form.user_prompt is not None:
        yield "user_prompt", "not together with messages"
    if form.messages is not None and form.system_prompt is not None:
        yield "system_prompt", "not together with messages; make it the first of them"


def _check_tools(form: CreateRun) -> Iterator[tuple[str, str]]:
    for at, name in enumerate(form.tools or []):
        if name in (form.tools or [])[:at]:
            yield f"tools.{at}", f"{name!r} stands twice"
    choice = _tool_choice(form.tool_choice)
    if choice == "required" and form.tools == []:
        yield "tool_choice", "nothing can be required where tools is empty"
    if isinstance(choice, dict) and form.tools is not None and choice["function"]["name"] not in form.tools:
        yield "tool_choice", "the tool is not among tools"
