"""Builds the OpenAPI 3.1 document from the endpoints and from the models that parse requests and render responses.

Spec: https://spec.openapis.org/oas/v3.1.1.html
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from stagebus.gateway.api.endpoint import BodySchema, Endpoint, ErrorFormat, ParameterSpec, ResponseSpec
from stagebus.gateway.api.guard import Guarded
from stagebus.gateway.api.problems import PROBLEM_DETAILS
from stagebus.gateway.api.responses import JSON
from stagebus.gateway.auth.sessions import COOKIE, SECURE_COOKIE, SECURE_COOKIE_BELOW_PREFIX
from stagebus.gateway.auth.tickets import PARAMETER
from stagebus.shared.access_errors import (
    USER_HEADER,
    BadUser,
    Forbidden,
    NotOnBehalf,
    RateLimited,
    Unauthenticated,
    UserRequired,
)
from stagebus.shared.domain.tenants import USER_PATTERN
from stagebus.shared.errors import StagebusError

Json = dict[str, Any]

SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `sbk_…`, from `stagebus keys create`, or a JWT from the configured issuer.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SECURE_COOKIE,
        "description": f"From `POST /session`, for pages of this origin. Below a prefix the cookie's name is "
        f"`{SECURE_COOKIE_BELOW_PREFIX}`, without TLS `{COOKIE}`.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": PARAMETER,
        "description": "From `POST /runs/{run_id}/ticket`, valid for that run only.",
    },
}
# Errors of every guarded operation.
GUARD_ERRORS: Final = (Unauthenticated, Forbidden, UserRequired, NotOnBehalf, BadUser, RateLimited)

# Readers of the document group operations by these. The modules of the handlers belong to one each.
TAGS: Final = {
    "Runs": "Create, list, read and cancel runs.",
    "Events": "Follow a run: each event once and in order, from any cursor.",
    "Threads": "Conversations of many runs, with their history, their branches and one stream over all turns.",
    "Approvals": "Decide on tool calls that wait for a person.",
    "Views": "Runs in the protocols of other projects' clients.",
    "Access": "Tickets for one run, and browser sessions.",
    "Catalog": "The tools and models that a run may name.",
    "System": "Health, metrics and statistics.",
    "Documents": "The page, this document, the events' schema, and the meaning of error codes.",
}
TAG_BY_MODULE: Final = {
    "thread_endpoints": "Threads", "thread_event_endpoint": "Threads",
    "thread_ticket_endpoints": "Access",
    "run_endpoints": "Runs", "event_endpoints": "Events", "approval_endpoints": "Approvals", "ticket_endpoints": "Access",
    "session_endpoints": "Access", "catalog_endpoints": "Catalog", "system_endpoints": "System",
    "document_endpoints": "Documents", "page_endpoints": "Documents",
}  # fmt: skip

_REF: Final = "#/components/schemas/{model}"
# A parameter of every guarded operation.
_USER: Final = ParameterSpec(
    USER_HEADER,
    "header",
    "The person within the tenant for whom the request is made, in UTF-8. Needs the scope `on_behalf`.",
    {"type": "string", "pattern": f"^{USER_PATTERN}$"},
)
_USER_REF: Final = {"$ref": "#/components/parameters/user"}


def build_document(endpoints: tuple[Endpoint, ...], *, is_open: bool, root_path: str = "") -> Json:
    """Returns the whole document.

    Args:
        is_open: the gateway requires no authentication.
        root_path: the prefix below which clients reach the gateway.
    """
    return {**_build_at_root(endpoints, is_open=is_open), "servers": [{"url": root_path or "/"}]}


@cache
def _build_at_root(endpoints: tuple[Endpoint, ...], *, is_open: bool) -> Json:
    documented = [endpoint for endpoint in endpoints if endpoint.is_documented]
    paths: Json = {}
    for endpoint in documented:
        methods = paths.setdefault(endpoint.path_template, {})
        methods[endpoint.method.lower()] = _operation(endpoint, is_open=is_open)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Stagebus",
            "version": version("stagebus"),
            "description": "Runs LLM toolchains as durable background jobs and streams their events to clients that "
            "can resume at any time.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas(documented),
            "parameters": {"user": _parameter(_USER)},
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


def _operation(endpoint: Endpoint, *, is_open: bool) -> Json:
    errors_format = endpoint.error_format or PROBLEM_DETAILS
    operation: Json = {
        "operationId": endpoint.name,
        "tags": [TAG_BY_MODULE.get(endpoint.handler.__module__.rpartition(".")[2], "Views")],
        "summary": endpoint.summary,
        **({"description": endpoint.description} if endpoint.description else {}),
        "parameters": [
            *(_parameter(parameter) for parameter in endpoint.parameters),
            *([] if endpoint.guard.is_public else [_USER_REF]),
        ],
        "responses": {
            **{str(status): _response(response) for status, response in endpoint.responses.items()},
            **_errors([*endpoint.errors, *(() if endpoint.guard.is_public else GUARD_ERRORS)], errors_format),
            "default": _error("Any other error.", errors_format),
        },
        "security": _security(endpoint.guard, is_open=is_open),
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": not endpoint.is_body_optional,
            "content": {JSON: {"schema": _schema(endpoint.body)}},
        }
    return operation


def _security(guard: Guarded, *, is_open: bool) -> list[Json]:
    """Returns the alternatives for authentication; an empty one means that none is required."""
    if guard.is_public:
        return []
    scopes = [] if guard.scope is None else [guard.scope.value]
    names = ["bearer", "session", *(["ticket"] if guard.takes_ticket else [])]
    alternatives: list[Json] = [{name: scopes} for name in names]
    return [{}, *alternatives] if is_open else alternatives


def _parameter(parameter: ParameterSpec) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.location == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _response(response: ResponseSpec) -> Json:
    entry: Json = {"description": response.description}
    if response.content:
        entry["content"] = {media_type: {"schema": _schema(body)} for media_type, body in response.content.items()}
    if response.headers:
        entry["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in response.headers.items()
        }
    return entry


def _errors(errors: Sequence[type[StagebusError]], error_format: ErrorFormat) -> Json:
    """Returns the error responses by status. Errors with the same status differ in their codes."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        codes.setdefault(error_format.status_of(error), []).append(f"`{error.code}`")
    return {str(status): _error(" or ".join(names), error_format) for status, names in sorted(codes.items())}


def _error(description: str, error_format: ErrorFormat) -> Json:
    content = {error_format.media_type: {"schema": _schema(error_format.model)}}
    return {"description": description, "content": content}


def _schema(body: BodySchema) -> Mapping[str, Any]:
    return {"$ref": _REF.format(model=body.__name__)} if isinstance(body, type) else body


def _schemas(endpoints: Iterable[Endpoint]) -> Json:
    """Returns the schema of every model that the endpoints use, and of the models inside them."""
    models: dict[type[BaseModel], Literal["validation", "serialization"]] = {}
    for endpoint in endpoints:
        models[(endpoint.error_format or PROBLEM_DETAILS).model] = "serialization"
        if endpoint.body is not None:
            models[endpoint.body] = "validation"
        for response in endpoint.responses.values():
            models |= {body: "serialization" for body in response.content.values() if isinstance(body, type)}
    _, schemas = models_json_schema(list(models.items()), ref_template=_REF)
    definitions: Json = schemas["$defs"]
    return definitions
