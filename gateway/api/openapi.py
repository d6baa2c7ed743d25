"""The HTTP API as OpenAPI 3.1, made from the same models that read requests and write answers.

Spec: https://spec.openapis.org/oas/v3.1.1.html
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stagebus.gateway.api.guard import Guarded
from stagebus.gateway.api.operations import JSON, OPERATIONS, Operation, Parameter, Reply
from stagebus.gateway.api.problems import MEDIA_TYPE as PROBLEM
from stagebus.gateway.api.schemas.answers import Problem
from stagebus.gateway.auth.sessions import COOKIE, SECURE_COOKIE
from stagebus.gateway.auth.tickets import PARAMETER
from stagebus.shared.access_errors import Forbidden, RateLimited, Unauthenticated
from stagebus.shared.errors import StagebusError

Json = dict[str, Any]

SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key, `sbk_…`, from `stagebus keys create`; or a JWT of the issuer that the operator set",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SECURE_COOKIE,
        "description": f"from POST /session, for pages of this origin; without TLS it is called `{COOKIE}`",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": PARAMETER,
        "description": "from POST /runs/{run_id}/ticket, for that run alone",
    },
}
# What every guarded operation may answer.
REFUSALS: Final = (Unauthenticated, Forbidden, RateLimited)

_REF: Final = "#/components/schemas/{model}"


@cache
def document(guards: tuple[tuple[str, str, Guarded], ...], *, is_open: bool) -> Json:
    """The whole document.

    Args:
        guards: who may call what, by path and method, as the app's routes have it.
        is_open: whether this gateway asks nobody who he is.
    """
    guard_of = {(path, method.lower()): guard for path, method, guard in guards}
    paths: Json = {}
    for operation in OPERATIONS:
        guard = guard_of[operation.path, operation.method]
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, guard, is_open=is_open)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Stagebus",
            "version": version("stagebus"),
            "description": "Durable background runs of LLM toolchains, streamed to clients that can always resume.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(OPERATIONS), "securitySchemes": SECURITY_SCHEMES},
    }


def _operation(operation: Operation, guard: Guarded, *, is_open: bool) -> Json:
    entry: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            **{str(status): _reply(reply) for status, reply in operation.replies.items()},
            **_problems([*operation.errors, *(() if guard.is_public else REFUSALS)]),
            "default": _problem("Any other error."),
        },
        "security": _security(guard, is_open=is_open),
    }
    if operation.body is not None:
        entry["requestBody"] = {
            "required": not operation.is_body_optional,
            "content": {JSON: {"schema": _schema(operation.body)}},
        }
    return entry


def _security(guard: Guarded, *, is_open: bool) -> list[Json]:
    """The ways in, each good enough alone; none at all is one where everybody is let in."""
    if guard.is_public:
        return []
    roles = [] if guard.scope is None else [guard.scope.value]
    names = ["bearer", "session", *(["ticket"] if guard.takes_ticket else [])]
    ways: list[Json] = [{name: roles} for name in names]
    return [{}, *ways] if is_open else ways


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _reply(reply: Reply) -> Json:
    entry: Json = {"description": reply.description}
    if reply.contents:
        entry["content"] = {media_type: {"schema": _schema(what)} for media_type, what in reply.contents.items()}
    if reply.headers:
        entry["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in reply.headers.items()
        }
    return entry


def _problems(errors: Sequence[type[StagebusError]]) -> Json:
    """Errors by status: several may share one, and their codes tell them apart."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        codes.setdefault(error.status_hint, []).append(f"`{error.code}`")
    return {str(status): _problem(" or ".join(names)) for status, names in sorted(codes.items())}


def _problem(description: str) -> Json:
    return {"description": description, "content": {PROBLEM: {"schema": _schema(Problem)}}}


def _schema(what: type[BaseModel] | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"$ref": _REF.format(model=what.__name__)} if isinstance(what, type) else what


def _schemas(operations: Iterable[Operation]) -> Json:
    """Every model that the operations name, with those inside of it."""
    models: dict[type[BaseModel], Literal["validation", "serialization"]] = {Problem: "serialization"}
    for operation in operations:
        if operation.body is not None:
            models[operation.body] = "validation"
        for reply in operation.replies.values():
            models |= {what: "serialization" for what in reply.contents.values() if isinstance(what, type)}
    _, schemas = models_json_schema(list(models.items()), ref_template=_REF)
    definitions: Json = schemas["$defs"]
    return definitions
