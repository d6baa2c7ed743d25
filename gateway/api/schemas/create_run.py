"""The body of `POST /runs`, and its conversion to the stored request."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from stagebus.gateway.api.schemas.chat_messages import Message, WireModel
from stagebus.gateway.api.schemas.client_tool import (
    OfferedTool,
    ToolName,
    check_definitions,
    client_tools_of,
    names_of,
)
from stagebus.gateway.api.schemas.model_parameters import TOKENS_MAX, ModelParameters, ResponseFormat
from stagebus.gateway.api.schemas.thread_fields import ThreadFields, check_new_messages, check_thread_fields
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.config.provider_schema import NAME_PATTERN
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import URL_MAX_CHARS
from stagebus.shared.domain.requests import STAGE_PARAMETERS, RunRequest
from stagebus.shared.domain.runs import ROUNDS_MAX
from stagebus.shared.domain.threads import ROOT, Messages, ThreadIdentity, ThreadRequest
from stagebus.shared.errors import InvalidRequest, UnknownModel

MESSAGES_MAX: Final = 1000
TOOLS_MAX: Final = 128
METADATA_MAX: Final = 16
MODEL_FIELDS: Final = ("model.extraction", "model.synthesis")
METADATA_KEY_MAX_CHARS: Final = 64
METADATA_VALUE_MAX_CHARS: Final = 512
TOOL_CHOICES: Final = frozenset({"auto", "none", "required"})


def _name_or_stages(value: Any) -> str:
    return "stages" if isinstance(value, dict) else "name"


def _word_or_tool(value: Any) -> str:
    return "tool" if isinstance(value, dict) else "word"


class ToolChoiceFunction(WireModel):
    """The function of a `NamedToolChoice`."""

    name: ToolName = Field(description="the tool's name")


class NamedToolChoice(WireModel):
    """Forces the model to call this tool."""

    type: Literal["function"] = Field(description="the choice's type")
    function: ToolChoiceFunction = Field(description="the tool")


ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class StageModels(WireModel):
    """A model for each stage. A stage without one uses the default model."""

    extraction: ModelName | None = Field(default=None, description="the model that chooses tools")
    synthesis: ModelName | None = Field(default=None, description="the model that writes the answer")


StageModel = Annotated[
    Annotated[ModelName, Tag("name")] | Annotated[StageModels, Tag("stages")], Discriminator(_name_or_stages)
]
ToolChoice = Annotated[
    Annotated[ToolName, Tag("word")] | Annotated[NamedToolChoice, Tag("tool")], Discriminator(_word_or_tool)
]
MetadataKey = Annotated[str, Field(min_length=1, max_length=METADATA_KEY_MAX_CHARS)]
MetadataValue = Annotated[str, Field(max_length=METADATA_VALUE_MAX_CHARS)]


class RunOptions(ModelParameters):
    """Everything about a run but its prompt."""

    model: StageModel | None = Field(
        default=None,
        description="a model's name, or an object with a name for each stage; the configured default if omitted",
    )
    tools: list[OfferedTool] | None = Field(
        default=None,
        max_length=TOOLS_MAX,
        description="the tools that the model may call, all of `GET /tools` if omitted, none if empty: names, and definitions "
        "of tools that a client runs",
    )
    tool_choice: ToolChoice = Field(
        default="auto",
        description="`auto`, `none`, `required`, or the tool to call: its name or an object as in chat completions",
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="whether the model may call several tools in one response"
    )
    synthesis: bool = Field(default=True, description="whether a model writes an answer from the tools' results")
    max_total_tokens: int | None = Field(
        default=None,
        ge=1,
        le=TOKENS_MAX,
        description="the most tokens of all stages together, prompts included; a run that uses more ends with "
        "`budget_exceeded`",
    )
    max_rounds: int = Field(default=1, ge=1, le=ROUNDS_MAX, description="how many times the model may call tools")
    timeout_s: float | None = Field(
        default=None, gt=0, description="the run's time limit in seconds, up to the configured maximum"
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default={}, max_length=METADATA_MAX, description="the client's own key-value pairs, returned with the run"
    )
    webhook_url: str | None = Field(
        default=None,
        min_length=1,
        max_length=URL_MAX_CHARS,
        description="is told when the run waits or ends, if the operator allows its origin: docs/webhooks.md",
    )


class CreateRun(RunOptions, ThreadFields):
    """A new run. Exactly one of `user_prompt` and `messages` is required."""

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

    user_prompt: str | None = Field(default=None, min_length=1, description="the user's request")
    system_prompt: str | None = Field(
        default=None, min_length=1, description="instructions for the model; only together with `user_prompt`"
    )
    messages: list[Message] | None = Field(
        default=None,
        min_length=1,
        max_length=MESSAGES_MAX,
        description="a conversation in the format of chat completions",
    )


def parse_create_run(body: dict[str, Any], settings: Settings, providers: Providers | None = None) -> RunRequest:
    """Parses a request body and fills in the defaults.

    Args:
        providers: used to check model names; None skips the check.

    Raises:
        InvalidRequest: the error names every invalid field.
    """
    form = parse_form(CreateRun, body)
    faults = [
        *_check_prompt(form),
        *_check_tools(form),
        *check_definitions(form.tools or [], settings),
        *check_thread_fields(form),
    ]
    if form.thread_id is not None and not faults:
        faults += check_new_messages(_messages(form), is_at_root=form.parent_run_id == ROOT)
    if form.timeout_s is not None and form.timeout_s > settings.run_timeout_max_s:
        faults.append(("timeout_s", f"at most {settings.run_timeout_max_s:g} s"))
    model = _model(form.model, settings.model if providers is None else providers.default_model)
    faults += _check_models(model, providers)
    faults += _check_stop(form, model, providers)
    if faults:
        raise invalid_fields(faults)
    return RunRequest(
        model=model,
        messages=_messages(form),
        tools=None if form.tools is None else names_of(form.tools),
        client_tools=client_tools_of(form.tools or []),
        tool_choice=_tool_choice(form.tool_choice),
        parallel_tool_calls=form.parallel_tool_calls,
        synthesis=form.synthesis,
        response_format=_response_format(form.response_format),
        max_total_tokens=form.max_total_tokens,
        max_rounds=form.max_rounds,
        timeout_s=settings.run_timeout_s if form.timeout_s is None else form.timeout_s,
        metadata=form.metadata,
        webhook_url=form.webhook_url,
        parent_run_id=form.parent_run_id,
        truncate=form.truncate,
        **{name: form.per_stage(name) for name in STAGE_PARAMETERS},
    )


def thread_of(body: dict[str, Any], tenant: str, user: str, messages: Messages) -> ThreadRequest | None:
    """Returns the place in a thread that a body asks for, or None. `parse_create_run` has accepted the body.

    Args:
        user: the person within the tenant; empty for none.
        messages: those of the parsed request.
    """
    form = parse_form(ThreadFields, {name: body[name] for name in ThreadFields.model_fields if name in body})
    if form.thread_id is None:
        return None
    identity = ThreadIdentity(tenant, user, form.thread_id)
    return ThreadRequest(identity, messages, form.policy, form.parent_run_id)


def named_tools(request: RunRequest) -> list[str]:
    """Returns the names of all tools in a request that a worker must have."""
    named = request.registry_tools
    if isinstance(request.tool_choice, dict):
        named.append(request.tool_choice["function"]["name"])
    defined = {tool.name for tool in request.client_tools}
    return [name for name in named if name not in defined]


def taken_names(request: RunRequest, taken: set[str]) -> InvalidRequest:
    """Returns the error for defined tools with names that tools of the workers have."""
    where = {name: f"tools.{at}" for at, name in enumerate(request.tools or [])}
    return invalid_fields(
        [(where[name], f"a tool of GET /tools is called {name!r}; choose another name") for name in sorted(taken)]
    )


def unknown_tools(request: RunRequest, unknown: set[str]) -> InvalidRequest:
    """Returns the error for tools that no worker has published."""
    where = {name: f"tools.{at}" for at, name in enumerate(request.tools or [])}
    return invalid_fields(
        [(where.get(name, "tool_choice"), f"unknown tool {name!r}; see GET /tools") for name in sorted(unknown)]
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
                yield field, "required, because no default model is configured; see GET /models"
            elif providers is not None:
                providers.routes(name)
        except UnknownModel as exc:
            yield field, str(exc)


def _check_stop(
    form: CreateRun, model: str | tuple[str, str], providers: Providers | None
) -> Iterator[tuple[str, str]]:
    """Yields a fault if a model cannot end its answer at a text: without it, the answer would be another one.

    Other parameters that a model does not take are left out, and `stage_started` names them.
    """
    models = (model, model) if isinstance(model, str) else model
    for name, stop in zip(models, form.per_stage("stop"), strict=True):
        if providers is None or stop is None:
            continue
        with suppress(UnknownModel):
            if any(route.ignored(["stop"]) for route in providers.routes(name)):
                yield "stop", f"the model {name!r} or one of its fallbacks does not take it; leave it out"
                return


def _messages(form: CreateRun) -> list[dict[str, Any]]:
    if form.messages is not None:
        return [message.model_dump(exclude_unset=True) for message in form.messages]
    system = [] if form.system_prompt is None else [{"role": "system", "content": form.system_prompt}]
    return [*system, {"role": "user", "content": form.user_prompt}]


def _tool_choice(choice: str | NamedToolChoice) -> str | dict[str, Any]:
    if isinstance(choice, NamedToolChoice):
        return choice.model_dump()
    return choice if choice in TOOL_CHOICES else {"type": "function", "function": {"name": choice}}


def _response_format(form: ResponseFormat | None) -> dict[str, Any] | None:
    return None if form is None or form.type == "text" else form.model_dump(by_alias=True, exclude_none=True)


def _check_prompt(form: CreateRun) -> Iterator[tuple[str, str]]:
    if form.messages is None and form.user_prompt is None:
        yield "user_prompt", "required, unless messages is given"
    if form.messages is not None and form.user_prompt is not None:
        yield "user_prompt", "not allowed together with messages"
    if form.messages is not None and form.system_prompt is not None:
        yield "system_prompt", "not allowed together with messages; make it the first message"


def _check_tools(form: CreateRun) -> Iterator[tuple[str, str]]:
    names = names_of(form.tools or [])
    for at, name in enumerate(names):
        if name in names[:at]:
            yield f"tools.{at}", f"duplicate tool {name!r}"
    choice = _tool_choice(form.tool_choice)
    if choice == "required" and form.tools == []:
        yield "tool_choice", "required is not possible if tools is empty"
    if isinstance(choice, dict) and form.tools is not None and choice["function"]["name"] not in names:
        yield "tool_choice", "the tool is not in tools"
