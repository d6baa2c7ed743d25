"""View: OpenAI's Responses API, for its SDKs and all that use them.

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=…)
    for event in client.responses.create(model=…, input="Hello", stream=True, background=True): …
    client.responses.retrieve(response_id, stream=True, starting_after=event.sequence_number)

Every run is a response, however it was created: its id is `resp_<run id>`.
Spec: https://platform.openai.com/docs/api-reference/responses
"""

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS
from stagebus.gateway.api.endpoint import Endpoint, ParameterSpec, ResponseSpec
from stagebus.gateway.api.guard import PART, RUN_ID, needs
from stagebus.gateway.api.params import IDEMPOTENCY_KEY
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.run_creation import CREATION_ERRORS
from stagebus.gateway.api.schemas.model_list import ModelList
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.views.client_results import RESULT_ERRORS
from stagebus.gateway.views.create_response import FIELDS, CreateResponse, as_run
from stagebus.gateway.views.foreign_request import Json, create_run, read_body, read_flag, resolve_tools
from stagebus.gateway.views.openai_errors import OPENAI_ERRORS
from stagebus.gateway.views.response_ids import RESPONSE_PREFIX, parse_part, response_id
from stagebus.gateway.views.response_threads import continue_run, thread_fields_of
from stagebus.gateway.views.responses_fold import ResponsesFold
from stagebus.gateway.views.view_stream import (
    STREAM_ERRORS,
    X_RUN_ID,
    answer_stream,
    fold_run,
    fold_to_part,
    get_run,
    source_of,
    wait_for_cut,
    wait_for_end,
)
from stagebus.shared.domain import run_id_pattern
from stagebus.shared.domain.runs import RunRecord, RunStatus
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest, RunNotFound
from stagebus.shared.observability.audit import audit
from stagebus.shared.store import run_store

# How long a cancel waits for the run's end before it answers.
CANCEL_WAIT_S: Final = 5.0
POSITION_MAX_DIGITS: Final = 15


async def create_response(request: Request) -> Response:
    """Create a response: a run, seen through OpenAI's Responses API.

    `stream` answers with the event stream from its first event, `background` at once with the response as it is. With
    neither, the answer is the response once the run has ended, also if it failed or was cancelled: see its `status`.
    `previous_response_id` and `conversation` continue a thread: `input` then has only what is new. Functions that the request
    defines are the client's to run: the response ends with `function_call` items, and their outputs, in a request of their
    own, continue the run as the next response.
    """
    body = await read_body(request)
    is_stream, is_background = read_flag(body, "stream"), read_flag(body, "background")
    continued = await continue_run(request, body)
    run, part = continued or (await _create_run(request, body, is_watched=is_stream or not is_background), 1)
    source = source_of(run, ResponsesFold)
    if is_background and not is_stream:
        return _answer((await fold_run(request, source)).fold, part)
    start = await fold_to_part(request, source, part)
    if is_stream:
        return await answer_stream(request, source, start=start)
    return _answer(await wait_for_cut(request, source, start), part)


async def _create_run(request: Request, body: Json, *, is_watched: bool) -> RunRecord:
    fields = as_run(body)
    fields |= await thread_fields_of(request, body, fields["messages"])
    fields["tools"] = await resolve_tools(request, fields["tools"])
    return await create_run(request, body, fields, FIELDS, is_watched=is_watched)


async def get_response(request: Request) -> Response:
    """Get a response, or its event stream with `?stream=true`, for every run.

    The stream begins after the event `starting_after`, or at the first one, and continues live.
    """
    part = parse_part(request.path_params[PART])
    source = source_of(await get_run(request, request.path_params[RUN_ID]), ResponsesFold)
    if not _wants_stream(request):
        return _answer((await fold_run(request, source)).fold, part)
    after = request.query_params.get("starting_after")
    if after is None:
        start = await fold_to_part(request, source, part)
        if start is not None and not start.is_found:
            raise RunNotFound(source.run.run_id)
        return await answer_stream(request, source, start=start)
    is_number = after.isascii() and after.isdecimal() and len(after) <= POSITION_MAX_DIGITS
    start = await fold_run(request, source, int(after), part) if is_number else None
    if start is None or not start.is_found:
        raise invalid_fields([("starting_after", "must be the sequence_number of an event that this response has")])
    return await answer_stream(request, source, start=start)


async def cancel_response(request: Request) -> Response:
    """Cancel a response.

    Safe to repeat. Waits a few seconds for the run's end; the response is `in_progress` if that takes longer. The credential
    needs `runs:read`, too, because the answer has the response's text.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    principal.check(Scope.RUNS_READ)  # the answer is the response
    part = parse_part(request.path_params[PART])
    run = await get_run(request, request.path_params[RUN_ID])
    if run.status in (RunStatus.SUCCEEDED, RunStatus.FAILED):
        raise InvalidRequest("Cannot cancel a completed response.")
    source = source_of(run, ResponsesFold)
    fold = (await fold_run(request, source)).fold if run.is_terminal or run.request.get("client_tools") else None
    if fold is not None and part <= len(fold.ended):
        raise InvalidRequest("Cannot cancel a completed response.")
    if run.is_terminal and fold is not None:
        return _answer(fold, part)
    await run_store.cancel_run(gateway.redis, gateway.settings, run.run_id, principal.owner)
    audit("run.cancel", subject=principal.subject, tenant=principal.tenant, run=run.run_id)
    return _answer(await wait_for_end(request, source, CANCEL_WAIT_S), part)


async def list_openai_models(request: Request) -> Response:
    """List the models in OpenAI's format, as `GET /models` has them."""
    providers = gateway_of(request).providers
    models = [
        {"id": model.id, "object": "model", "created": 0, "owned_by": model.provider}
        for model in ModelList.of(providers, providers.default_model).models
    ]
    return Response(orjson.dumps({"object": "list", "data": models}), media_type=JSON)


def _answer(fold: ResponsesFold, part: int) -> Response:
    response = fold.response(part)
    if response is None:
        raise RunNotFound(response_id(fold.run.run_id, part))
    return Response(orjson.dumps(response), media_type=JSON)


def _wants_stream(request: Request) -> bool:
    value = request.query_params.get("stream", "false")
    if value not in ("true", "false"):
        raise invalid_fields([("stream", "must be true or false")])
    return value == "true"


_RESPONSE_ID: Final = ParameterSpec(
    RUN_ID,
    "path",
    "The response's id: `resp_<run id>`, or `resp_<run id>_<n>` for the n-th of a run with function calls.",
    {"type": "string", "pattern": f"^{RESPONSE_PREFIX}{run_id_pattern.PATTERN}(_[1-9][0-9]{{0,2}})?$"},
)
_PARAMETERS: Final = (
    _RESPONSE_ID,
    ParameterSpec("stream", "query", "Whether to answer with the event stream.", {"enum": ["true", "false"]}),
    ParameterSpec(
        "starting_after",
        "query",
        "The `sequence_number` of the last event received.",
        {"type": "integer", "minimum": 0},
    ),
)
_HEADERS: Final = {X_RUN_ID: "The run's id."}
# A response and its events are described by OpenAI's own document.
_RESPONSE: Final[dict[str, Any]] = {"type": "object"}
_EITHER: Final = {
    200: ResponseSpec("The response, or its event stream.", {JSON: _RESPONSE, EVENT_STREAM: {}}, _HEADERS)
}

ENDPOINTS: Final = (
    Endpoint(
        "POST", "/v1/responses", create_response, needs(Scope.RUNS_WRITE), _EITHER, [IDEMPOTENCY_KEY], CreateResponse,
        errors=[*BODY_ERRORS, *CREATION_ERRORS, *RESULT_ERRORS, *STREAM_ERRORS], error_format=OPENAI_ERRORS,
    ),
    Endpoint(
        "GET", "/v1/responses/{run_id}", get_response,
        needs(Scope.RUNS_READ, takes_ticket=True, run_prefix=RESPONSE_PREFIX, has_parts=True), _EITHER, _PARAMETERS,
        errors=[InvalidRequest, *STREAM_ERRORS], error_format=OPENAI_ERRORS,
    ),
    Endpoint(
        "POST", "/v1/responses/{run_id}/cancel", cancel_response,
        needs(Scope.RUNS_CANCEL, run_prefix=RESPONSE_PREFIX, has_parts=True),
        {200: ResponseSpec("The response.", {JSON: _RESPONSE}, _HEADERS)}, [_RESPONSE_ID],
        errors=[InvalidRequest, *STREAM_ERRORS], error_format=OPENAI_ERRORS,
    ),
    Endpoint(
        "GET", "/v1/models", list_openai_models, needs(None),
        {200: ResponseSpec("The models.", {JSON: {"type": "object"}})}, error_format=OPENAI_ERRORS,
    ),
)  # fmt: skip
