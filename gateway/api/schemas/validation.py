"""Validates bodies against their models. Errors name every invalid field and never contain the input."""

from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stagebus.shared.errors import InvalidRequest

ERRORS_MAX: Final = 20
ERROR_MAX_CHARS: Final = 300
PATH_PART_MAX_CHARS: Final = 64

Form = TypeVar("Form", bound=BaseModel)


def parse_form(form: type[Form], body: dict[str, Any]) -> Form:
    """Parses a body as a model.

    Raises:
        InvalidRequest: the error names every invalid field.
    """
    try:
        return form.model_validate(body)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        raise invalid_fields([(_path(error, body), error["msg"]) for error in errors]) from exc


def invalid_fields(faults: list[tuple[str, str]]) -> InvalidRequest:
    """Returns the error for invalid fields, given as pairs of a path and a message."""
    errors = [{"field": field, "message": message[:ERROR_MAX_CHARS]} for field, message in faults[:ERRORS_MAX]]
    first = errors[0]
    detail = f"{first['field'] or 'the body'}: {first['message']}"
    return InvalidRequest(detail if len(faults) == 1 else f"{detail} (and {len(faults) - 1} more)", errors)


def _path(error: ErrorDetails, body: dict[str, Any]) -> str:
    """Returns the path of an invalid field: pydantic's location without the names of union members."""
    path: list[str] = []
    value: Any = body
    for part in error["loc"]:
        members = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(members, dict) and part in members:
            value = members[part]
            path.append(str(part)[:PATH_PART_MAX_CHARS])
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
    return ".".join(path)
