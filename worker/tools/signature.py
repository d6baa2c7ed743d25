"""Reads the signature of a tool's function: the JSON Schema for the model, and the validation of arguments.

The descriptions of the tool and of its parameters come from the docstring.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple, Union, get_args, get_origin

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from stagebus.shared.errors import BadTool
from stagebus.shared.runtime.exact_json import parse_json
from stagebus.worker.tools.docstrings import parse_docstring
from stagebus.worker.tools.recursive_unions import nesting_max, nests_deeper
from stagebus.worker.tools.strict_schema import NotStrict, to_strict, without_nulls
from stagebus.worker.tools.tool_context import ToolContext

ToolFunction = Callable[..., Any]

_INPUT_MAX_CHARS: Final = 80
_ERRORS_MAX: Final = 20


class BadArguments(Exception):
    """The arguments of a call are invalid. The message is for the model and names each field."""


class Signature(NamedTuple):
    """The parsed signature of a function.

    Attributes:
        parameters: the JSON Schema for the model.
        loose: the schema before its conversion to strict mode; None without strict mode.
        names: all parameters in order.
        positional: the positional-only parameters.
        contexts: the parameters of type `ToolContext`.
        model: validates the arguments.
        nesting_max: the most objects within one another, if their types take exponential time to validate.
    """

    description: str
    parameters: dict[str, Any]
    loose: dict[str, Any] | None
    names: tuple[str, ...]
    positional: frozenset[str]
    contexts: frozenset[str]
    model: type[BaseModel]
    nesting_max: int | None = None

    def bind(self, tool_name: str, arguments: str, context: ToolContext) -> tuple[list[Any], dict[str, Any]]:
        """Parses the JSON of a call into positional and named arguments. An empty text means no arguments.

        Raises:
            BadArguments: the text is not a JSON object, or the arguments do not fit.
        """
        parsed = parse_object(tool_name, arguments)
        if self.nesting_max is not None and nests_deeper(parsed, self.nesting_max):
            raise BadArguments(f"The arguments of {tool_name} nest more than {self.nesting_max} objects.")
        try:
            bound = self.model.model_validate_json(self._without_nulls(_text(arguments)))
        except ValidationError as exc:
            raise BadArguments(_explain(tool_name, exc)) from None
        except ValueError as exc:  # for example nested too deep for pydantic's parser
            raise BadArguments(f"The arguments of {tool_name} cannot be read as JSON: {exc}.") from None
        values = {
            name: context if name in self.contexts else getattr(bound, _field(index))
            for index, name in enumerate(self.names)
        }
        positional = [values.pop(name) for name in self.names if name in self.positional]
        return positional, values

    def _without_nulls(self, text: str) -> str | bytes:
        """Returns the arguments without the nulls by which a strict call requests defaults."""
        if self.loose is None:
            return text
        return pydantic_core.to_json(without_nulls(self.loose, pydantic_core.from_json(text)))


def parse_object(tool_name: str, arguments: str) -> dict[str, Any]:
    """Parses the JSON of a call. An empty text means no arguments.

    Raises:
        BadArguments: the text is not a JSON object.
    """
    try:
        parsed = parse_json(_text(arguments))
    except ValueError as exc:
        raise BadArguments(f"The arguments of {tool_name} cannot be read as JSON: {exc}.") from None
    if not isinstance(parsed, dict):
        raise BadArguments(f"The arguments of {tool_name} must be a JSON object.")
    return parsed


def _text(arguments: str) -> str:
    text = arguments.strip()
    return "{}" if text in ("", "null") else text


def read_signature(function: ToolFunction, name: str, *, is_strict: bool = False) -> Signature:
    """Reads the signature and the docstring of a function.

    Args:
        is_strict: whether to convert the schema for OpenAI's strict mode.

    Raises:
        BadTool: the signature has no JSON Schema; the message says why.
    """
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, TypeError, ValueError, SyntaxError) as exc:
        raise BadTool(f"tool {name!r}: the signature cannot be read: {exc}") from exc
    documentation = parse_docstring(inspect.getdoc(function))
    contexts = frozenset(p.name for p in parameters.values() if _is_context(p.annotation))
    fields = {
        _field(index): _field_of(parameter, documentation.parameters.get(parameter.name), name)
        for index, parameter in enumerate(parameters.values())
        if parameter.name not in contexts
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)
    try:
        model: type[BaseModel] = create_model(name, __config__=config, **fields)
        schema = model.model_json_schema(schema_generator=_Schema)
    except (PydanticUserError, TypeError) as exc:
        raise BadTool(f"tool {name!r}: the parameters have no JSON Schema: {str(exc).splitlines()[0]}") from exc
    loose = _tidy(schema)
    try:
        parameters_shown = to_strict(loose) if is_strict else loose
    except NotStrict as exc:
        raise BadTool(f"tool {name!r} cannot be strict: {exc}") from exc
    return Signature(
        description=documentation.description,
        parameters=parameters_shown,
        loose=loose if is_strict else None,
        names=tuple(parameters),
        positional=frozenset(p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY),
        contexts=contexts,
        model=model,
        nesting_max=nesting_max(schema),
    )


def _is_context(hint: Any) -> bool:
    """Returns whether the type is `ToolContext` or `ToolContext | None`, with which the function can be called without one."""
    if get_origin(hint) in (Union, types.UnionType):
        return ToolContext in get_args(hint)
    return hint is ToolContext


def _field(index: int) -> str:
    """Returns the name of a field in the model. The parameter's name is its alias, since pydantic may reserve that name."""
    return f"p{index}"


def _field_of(parameter: inspect.Parameter, description: str | None, name: str) -> Any:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise BadTool(f"tool {name!r}: a model cannot fill {parameter}; use named parameters")
    hint = Any if parameter.annotation is parameter.empty else parameter.annotation
    if description:
        hint = Annotated[hint, Field(description=description)]
    default = ... if parameter.default is parameter.empty else parameter.default
    return (Annotated[hint, Field(alias=parameter.name)], default)


class _Schema(GenerateJsonSchema):
    # A default without a JSON form is left out of the schema; the function still uses it.
    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - pydantic's declaration


def _tidy(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the titles that pydantic adds, since they cost tokens."""
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
