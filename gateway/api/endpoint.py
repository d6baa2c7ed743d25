"""Declares an HTTP endpoint; its route, its guard and its part of `/openapi.json` are derived from it.

    Endpoint(
        "POST", "/runs/{run_id}/cancel", cancel_run, needs(Scope.RUNS_CANCEL),
        parameters=[RUN_ID],
        responses={202: ResponseSpec.json("A worker is stopping the run.", RunAccepted)},
        errors=[RunNotFound, StorageUnavailable],
    )

Each `*_endpoints.py` module and each view lists its own in `ENDPOINTS`; `endpoint_table.py` concatenates them.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.guard import Guarded, Handler
from stagebus.gateway.api.responses import JSON
from stagebus.shared.errors import StagebusError

# A pydantic model, or a JSON Schema where no model describes the body.
BodySchema = type[BaseModel] | Mapping[str, Any]

# Starlette's path convertors, such as `:path` in `{call_id:path}`.
_CONVERTOR: Final = re.compile(r":\w+(?=})")


class ParameterSpec(NamedTuple):
    """A parameter in the path, the query or a header."""

    name: str
    location: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class ResponseSpec:
    """A successful response: its content by media type, and its headers with a description each."""

    description: str
    content: Mapping[str, BodySchema] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, description: str, model: type[BaseModel], headers: Mapping[str, str] | None = None) -> "ResponseSpec":
        """Describes a JSON response."""
        return cls(description, {JSON: model}, headers or {})


class ErrorFormat(NamedTuple):
    """The format of an endpoint's errors: how an error is rendered, and its media type and model for OpenAPI.

    `statuses` has the statuses that differ from the errors' own.
    """

    media_type: str
    model: type[BaseModel]
    render: Callable[[Request, StagebusError], Response]
    statuses: Mapping[int, int] = {}

    def status_of(self, error: StagebusError | type[StagebusError]) -> int:
        """Returns the status of an error in this format."""
        return self.statuses.get(error.status_hint, error.status_hint)


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One method of one path.

    Args:
        path: in Starlette's syntax, with convertors.
        handler: its name is the operation's id, its docstring the summary and the description.
        access: `guard.public` or `guard.needs(...)`.
        body: the model of the request's JSON body.
        errors: those that the handler raises; the guard's own are added to the OpenAPI document.
        error_format: None for problem details.
        is_stream: can answer with an event stream, so a retryable error must not end a browser's EventSource.
        is_probe: polled by machines; successful requests are logged at debug level only.
        is_compressed: responses are gzipped. Never for event streams.
        is_documented: listed in the OpenAPI document.
    """

    method: str
    path: str
    handler: Handler
    access: Callable[[Handler], Guarded]
    responses: Mapping[int, ResponseSpec] = field(default_factory=dict)
    parameters: Sequence[ParameterSpec] = ()
    body: type[BaseModel] | None = None
    is_body_optional: bool = False
    errors: Sequence[type[StagebusError]] = ()
    error_format: ErrorFormat | None = None
    is_stream: bool = False
    is_probe: bool = False
    is_compressed: bool = False
    is_documented: bool = True

    @cached_property
    def guard(self) -> Guarded:
        """The handler behind its access check."""
        return self.access(self.handler)

    @property
    def name(self) -> str:
        """The operation's id."""
        return self.handler.__name__

    @property
    def path_template(self) -> str:
        """The path without convertors, as OpenAPI writes it."""
        return _CONVERTOR.sub("", self.path)

    @property
    def summary(self) -> str:
        """The first sentence of the handler's docstring."""
        return self._docstring[0]

    @property
    def description(self) -> str:
        """The rest of the handler's docstring, as Markdown."""
        return self._docstring[1]

    @property
    def _docstring(self) -> tuple[str, str]:
        summary, _, description = inspect.cleandoc(self.handler.__doc__ or "").partition("\n\n")
        return summary, description
