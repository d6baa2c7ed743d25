"""The definition of a tool in the body of `POST /runs`: a client runs its calls and gives their results."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Discriminator, Field, JsonValue, Tag

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.requests import ClientTool

# OpenAI accepts these function names, so every provider does.
FUNCTION_NAME_PATTERN: Final = r"^[a-zA-Z0-9_-]{1,64}$"
DESCRIPTION_MAX_CHARS: Final = 8_000
TOOL_NAME_PATTERN: Final = r"^[A-Za-z0-9_.-]{1,64}$"


class FunctionDefinition(WireModel):
    """The function of a `ToolDefinition`."""

    name: str = Field(pattern=FUNCTION_NAME_PATTERN, description="its name, which no tool of `GET /tools` has")
    description: str | None = Field(
        default=None, max_length=DESCRIPTION_MAX_CHARS, description="what it does, for the model"
    )
    parameters: dict[str, JsonValue] | None = Field(
        default=None,
        description="the JSON Schema of the arguments, an object; calls that do not fit it get an error and reach no client",
    )
    strict: bool | None = Field(default=None, description="the provider must follow the schema exactly, if it can")


class ToolDefinition(WireModel):
    """A tool that a client runs, in the form of chat completions."""

    type: Literal["function"] = Field(description="the tool's type")
    function: FunctionDefinition = Field(description="the function")
    once: bool = Field(
        default=False,
        description="only one client may ever run a call; if it goes away, the call fails instead of running again",
    )
    expires_in: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which a call without a result gets an error, at most 7 days; STAGEBUS_CALL_WAIT_S if "
        "omitted",
    )

    def stored(self) -> ClientTool:
        """Returns the tool as the run's request stores it."""
        function = self.function
        return ClientTool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters or {},
            strict=bool(function.strict),
            once=self.once,
            expires_in=self.expires_in,
        )


def _name_or_definition(value: Any) -> str:
    return "definition" if isinstance(value, dict) else "name"


ToolName = Annotated[str, Field(pattern=TOOL_NAME_PATTERN)]
OfferedTool = Annotated[
    Annotated[ToolName, Tag("name")] | Annotated[ToolDefinition, Tag("definition")], Discriminator(_name_or_definition)
]


def names_of(tools: Sequence[str | ToolDefinition]) -> list[str]:
    """Returns the name of each tool."""
    return [tool if isinstance(tool, str) else tool.function.name for tool in tools]


def client_tools_of(tools: Sequence[str | ToolDefinition]) -> list[ClientTool]:
    """Returns the tools that are defined, as the run's request stores them."""
    return [tool.stored() for tool in tools if isinstance(tool, ToolDefinition)]


def check_definitions(tools: Sequence[str | ToolDefinition], settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields the faults of definitions that their schema does not show."""
    for at, tool in enumerate(tools):
        if isinstance(tool, str):
            continue
        parameters = tool.function.parameters or {}
        if parameters.get("type", "object") != "object":
            yield f"tools.{at}.function.parameters", "the type of the arguments must be object"
        if len(orjson.dumps(parameters)) > settings.tool_schema_max_bytes:
            yield f"tools.{at}.function.parameters", f"at most {settings.tool_schema_max_bytes} bytes of JSON"
        if tool.expires_in is not None and tool.expires_in > settings.call_wait_max_s:
            yield f"tools.{at}.expires_in", f"at most {settings.call_wait_max_s:g} s"
