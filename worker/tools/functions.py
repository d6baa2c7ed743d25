"""A tool out of a typed Python function: its schema, and the check of a call's arguments.

    @tool(timeout_s=60, idempotent=False)
    async def book_table(restaurant: str, guests: Annotated[int, Field(ge=1)] = 2) -> str:
        ...

The decorator is only for options; any function with type hints will do. Its docstring
tells the model what it does and, under `Args`, what each parameter means.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from shared.errors import BadTool
from worker.tools.docstrings import parse_docstring

ToolFunction = Callable[..., Any]
F = TypeVar("F", bound=ToolFunction)

_OPTIONS: Final = "__stagebus_tool__"
_INPUT_MAX_CHARS: Final = 80
_ERRORS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What a function's author can say of it beyond its signature.

    Attributes:
        name: the function's own if not set.
        timeout_s: `tool_timeout_s` if not set.
        idempotent: whether the same call may run again when a worker died in it.
    """

    name: str | None = None
    timeout_s: float | None = None
    idempotent: bool = True


class BadArguments(Exception):
    """A call's arguments do not fit. The message is for the model: it names each field."""


def tool(*, name: str | None = None, timeout_s: float | None = None, idempotent: bool = True) -> Callable[[F], F]:
    """Give a function options as a tool; the function itself stays as it is."""

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, ToolOptions(name, timeout_s, idempotent))
        return function

    return mark


def options_of(function: ToolFunction) -> ToolOptions:
    """The options that `tool` gave to a function, or else the defaults."""
    options = getattr(function, _OPTIONS, None)
    return options if isinstance(options, ToolOptions) else ToolOptions()


class Signature(NamedTuple):
    """A function as the model and the validation see it."""

    description: str
    parameters: dict[str, Any]
    names: tuple[str, ...]
    positional: frozenset[str]
    model: type[BaseModel]

    def bind(self, tool_name: str, arguments: str) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the named arguments out of a call's JSON; no text is no arguments.

        Raises:
            BadArguments: they are no JSON object, or do not fit.
        """
        parse_object(tool_name, arguments)
        try:
            bound = self.model.model_validate_json(_text(arguments))
        except ValidationError as exc:
            raise BadArguments(_explain(tool_name, exc)) from None
        values = {name: getattr(bound, _field(place)) for place, name in enumerate(self.names)}
        positional = [values.pop(name) for name in self.names if name in self.positional]
        return positional, values


def parse_object(tool_name: str, arguments: str) -> dict[str, Any]:
    """The object out of a call's JSON; no text is no arguments.

    Raises:
        BadArguments: it is no JSON object.
    """
    try:
        parsed = orjson.loads(_text(arguments))
    except orjson.JSONDecodeError as exc:
        raise BadArguments(f"The arguments of {tool_name} are no JSON: {exc}.") from None
    if not isinstance(parsed, dict):
        raise BadArguments(f"The arguments of {tool_name} must be a JSON object.")
    return parsed


def _text(arguments: str) -> str:
    text = arguments.strip()
    return "{}" if text in ("", "null") else text


def read_signature(function: ToolFunction, name: str) -> Signature:
    """What a function's signature and docstring say.

    Raises:
        BadTool: no schema can be made of it; the message says why.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, TypeError, ValueError, SyntaxError) as exc:
        raise BadTool(f"tool {name!r}: its signature cannot be read: {exc}") from exc
    documentation = parse_docstring(inspect.getdoc(function))
    fields = {
        _field(place): _field_of(parameter, documentation.parameters.get(parameter.name), name)
        for place, parameter in enumerate(parameters.values())
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)
    try:
        model: type[BaseModel] = create_model(name, __config__=config, **fields)
        schema = model.model_json_schema(schema_generator=_Schema)
    except (PydanticUserError, TypeError) as exc:
        raise BadTool(f"tool {name!r}: its parameters have no JSON Schema: {str(exc).splitlines()[0]}") from exc
    by_position = (p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY)
    return Signature(documentation.description, _tidy(schema), tuple(parameters), frozenset(by_position), model)


def _field(place: int) -> str:
    """A field's name within the model; the parameter's own is its alias, as it may be one that pydantic uses."""
    return f"p{place}"


def _field_of(parameter: inspect.Parameter, description: str | None, name: str) -> Any:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise BadTool(f"tool {name!r}: a model cannot fill {parameter}; name every parameter")
    hint = Any if parameter.annotation is parameter.empty else parameter.annotation
    if description:
        hint = Annotated[hint, Field(description=description)]
    default = ... if parameter.default is parameter.empty else parameter.default
    return (Annotated[hint, Field(alias=parameter.name)], default)


class _Schema(GenerateJsonSchema):
    # A default that JSON cannot say is simply not said; the function knows it.
    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's declaration


def _tidy(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without the titles that pydantic makes of names: a model pays for every token of them."""
    tidied: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in ("properties", "$defs"):
            tidied[key] = {name: _tidy(inner) for name, inner in value.items()}
        elif key in ("anyOf", "allOf", "oneOf", "prefixItems"):
            tidied[key] = [_tidy(inner) for inner in value]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            tidied[key] = _tidy(value)
        else:
            tidied[key] = value
    return tidied


def _explain(tool_name: str, exc: ValidationError) -> str:
    lines = [f"The arguments do not fit {tool_name}:"]
    errors = exc.errors(include_url=False, include_context=False)
    for error in errors[:_ERRORS_MAX]:
        where = ".".join(str(part) for part in error["loc"]) or "arguments"
        given = "" if error["type"] == "missing" else f" (given: {repr(error['input'])[:_INPUT_MAX_CHARS]})"
        lines.append(f"- {where}: {error['msg']}{given}")
    if len(errors) > _ERRORS_MAX:
        lines.append(f"- and {len(errors) - _ERRORS_MAX} more")
    return "\n".join(lines)
