"""Requests in other protocols as bodies of `POST /runs`: what all views that create runs share.

Fields that change nothing are ignored, and those that would change the meaning and are not supported are rejected by
name. The object `stagebus` of a body has the options of `POST /runs` for which the protocol has no word, and wins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from stagebus.gateway.api import run_creation
from stagebus.gateway.api.body import read_json
from stagebus.gateway.api.schemas.chat_messages import Message
from stagebus.gateway.api.schemas.create_run import RunOptions
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.views.view_stream import check_admission, get_run
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import tool_catalog
from stagebus.shared.thread_errors import (
    ParentNotEnded,
    ParentNotFound,
    ThreadBusy,
    ThreadDeleting,
    ThreadFull,
    ThreadQueueFull,
    ThreadsUnavailable,
)

Json = dict[str, Any]

OPTIONS: Final = "stagebus"
# In a list of tools: every tool of the workers. No tool has this name.
EVERY_TOOL: Final = "*"
# The client has the whole conversation, so it is not refused when its thread cannot go on.
THREAD_REFUSALS: Final = (
    ParentNotFound, ParentNotEnded, ThreadBusy, ThreadDeleting, ThreadFull, ThreadQueueFull, ThreadsUnavailable,
)  # fmt: skip
_MESSAGES: Final = TypeAdapter(list[Message])


async def read_body(request: Request, *, takes_text: bool = False) -> Json:
    """Reads the JSON object of a request that creates a run and answers with it, and checks the scope for the latter.

    Args:
        takes_text: see `read_json`.

    Raises:
        Forbidden: the credential cannot read runs.
        UnsupportedMediaType, BodyTooLarge, BadJson: see `read_json`.
    """
    principal_of(request).check(Scope.RUNS_READ)
    return await read_json(request, gateway_of(request).settings.body_max_bytes, takes_text=takes_text)


def parse_messages(messages: Any, field: str) -> list[Json]:
    """Returns chat completion messages without the fields that Stagebus does not know.

    Raises:
        InvalidRequest: they are invalid; the error's field begins with `field`.
    """
    try:
        parsed = _MESSAGES.validate_python(messages, extra="ignore")
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        places = [".".join([field, *(str(part) for part in error["loc"] if isinstance(part, int))]) for error in errors]
        raise invalid_fields([(place, error["msg"]) for place, error in zip(places, errors, strict=True)]) from exc
    return [message.model_dump(exclude_unset=True) for message in parsed]


def reject(body: Json, faults: Mapping[str, str]) -> None:
    """Rejects the fields of a body that are set and not supported.

    Args:
        faults: why, by field.

    Raises:
        InvalidRequest: at least one of them is set.
    """
    found = [(field, fault) for field, fault in faults.items() if body.get(field) is not None]
    if found:
        raise invalid_fields(found)


def read_flag(body: Json, name: str) -> bool:
    """Returns a field that is true or false; false if it is omitted.

    Raises:
        InvalidRequest: it is neither.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid_fields([(name, "must be true or false")])
    return bool(value)


async def resolve_tools(request: Request, tools: Sequence[str | Json] | None) -> list[str | Json] | None:
    """Returns the `tools` of `POST /runs` for those of a request.

    Args:
        tools: names, `EVERY_TOOL`, and definitions. A definition with the name of a worker's tool means that tool; others
            are tools that the client runs.
    """
    if tools is None or not (EVERY_TOOL in tools or any(isinstance(tool, dict) for tool in tools)):
        return None if tools is None else list(tools)
    with storage_errors():
        published = await tool_catalog.find_published(gateway_of(request).redis)
    offered: list[str | Json] = []
    for tool in tools:
        name = tool if isinstance(tool, str) else tool["function"]["name"]
        named = sorted(published) if name == EVERY_TOOL else [name if name in published else tool]
        offered += [one for one in named if one not in offered]
    return offered


async def create_run(
    request: Request,
    body: Json,
    run: Json,
    fields: Mapping[str, str],
    *,
    is_watched: bool = True,
    idempotency_key: str | None = None,
    threads: Sequence[Json] = (),
) -> RunRecord:
    """Creates the run, or finds the one of the request's `Idempotency-Key`.

    Args:
        body: the request's, for its object `stagebus`.
        run: the body as one of `POST /runs`; values that are None are left out.
        fields: the protocol's names of fields, by those of `POST /runs`, for errors.
        is_watched: the request stays open for the run. It is refused before the run is created if that is not
            possible: a client would repeat it, and create another run.
        idempotency_key: None for that of the request's header.
        threads: fields that place the run in a thread; see `chat_threads.thread_fields`. The run has no thread, and the
            whole conversation as its messages, if the thread takes none of them.

    Raises:
        TooManyStreams, Draining: the request cannot stay open.
        InvalidRequest: the request is invalid; the error names the protocol's fields.
        BadIdempotencyKey, IdempotencyConflict, TooManyRuns, TokensUsedUp: see `run_creation.create_run`.
    """
    options = _parse_options(body.get(OPTIONS))
    if is_watched:
        await check_admission(request)
    native = {name: value for name, value in run.items() if value is not None}
    try:
        run_id = await _create_in_thread(request, native | options, idempotency_key, threads)
    except InvalidRequest as exc:
        renamed = {name: f"{OPTIONS}.{name}" for name in options}
        raise _with_fields(exc, {**fields, **renamed}) from exc
    return await get_run(request, run_id)


async def _create_in_thread(
    request: Request, native: Json, idempotency_key: str | None, threads: Sequence[Json]
) -> str:
    for placed in threads:
        try:
            return await run_creation.create_run(request, native | placed, idempotency_key)
        except THREAD_REFUSALS:
            continue
    return await run_creation.create_run(request, native, idempotency_key)


def _parse_options(options: Any) -> Json:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise invalid_fields([(OPTIONS, "must be an object with options of POST /runs")])
    try:
        parse_form(RunOptions, options)
    except InvalidRequest as exc:
        raise _with_fields(exc, {name: f"{OPTIONS}.{name}" for name in options}) from exc
    return {name: value for name, value in options.items() if value is not None}


def _with_fields(exc: InvalidRequest, fields: Mapping[str, str]) -> InvalidRequest:
    """Returns the error with other names for its fields."""
    faults = []
    for error in exc.errors:
        name, dot, rest = error["field"].partition(".")
        faults.append((f"{fields.get(name, name)}{dot}{rest}", error["message"]))
    return invalid_fields(faults) if faults else exc
