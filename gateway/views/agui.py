"""AG-UI 1.0: `HttpAgent` of @ag-ui/client, CopilotKit and other front ends for agents.

    POST /agui      RunAgentInput; the run's events, live

A thread id and a run id together name a run: the first request creates it, every later one attaches to it, whatever its
messages. A run id that is the id of a run attaches to that one.
Spec: https://docs.ag-ui.com/concepts/architecture
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.responses import EVENT_STREAM
from stagebus.gateway.api.run_creation import CREATION_ERRORS
from stagebus.gateway.api.schemas.create_run import RunOptions
from stagebus.gateway.api.schemas.validation import parse_form
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.views.agui_fold import AguiFold
from stagebus.gateway.views.chat_threads import ChatMessage, thread_fields
from stagebus.gateway.views.foreign_request import create_run, parse_messages, read_body
from stagebus.gateway.views.view_stream import STREAM_ERRORS, X_RUN_ID, answer_stream, fold_run, get_run, source_of
from stagebus.shared.domain import ids
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import IdempotencyConflict, RunNotFound
from stagebus.shared.runtime.json_text import compact_json
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import run_store

ID_MAX_CHARS: Final = 512
# Begins the idempotency keys of this protocol. Clients' own keys contain no space.
_KEY_PREFIX: Final = "agui "
# Messages of these roles are not the model's business.
_DROPPED: Final = ("activity", "reasoning")

Json = dict[str, Any]


def _is_unicode(text: str) -> str:
    text.encode()  # a lone surrogate raises a ValueError
    return text


Identifier = Annotated[str, Field(min_length=1, max_length=ID_MAX_CHARS), AfterValidator(_is_unicode)]


class ForwardedProps(BaseModel):
    """Values that the application passes on."""

    model_config = ConfigDict(extra="ignore")

    model: Any = Field(default=None, description="as in `POST /runs`")
    stagebus: RunOptions | None = Field(default=None, description="options of `POST /runs`; they win")


class AguiInput(BaseModel):
    """The RunAgentInput of AG-UI. Fields that change nothing here are dropped: the tools of Stagebus run in Stagebus."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)

    thread_id: Identifier = Field(alias="threadId", description="the conversation")
    run_id: Identifier = Field(alias="runId", description="the run's name in the conversation, or the id of a run")
    messages: list[Json] = Field(description="the conversation so far")
    forwarded_props: ForwardedProps | None = Field(default=None, alias="forwardedProps")


async def run_agent(request: Request) -> Response:
    """Create a run, or attach to the one of this thread and run id, and stream its events.

    The `threadId` is that of a thread: the messages after the last known answer are its next turn.

    A request that attaches gets the messages so far as a snapshot, then the events from there on.
    """
    body = await read_body(request)
    form = parse_form(AguiInput, body)
    run, is_attached = await _find_run(request, form), True
    if run is None:
        run, is_attached = await _create_run(request, form, body)
    own = f"msg_{run.run_id}_"
    posted = compact_json([message for message in form.messages if not str(message.get("id")).startswith(own)])
    source = source_of(run, AguiFold, form.thread_id, form.run_id, posted.encode())
    if not is_attached:
        return await answer_stream(request, source, opening=source.new().opening(is_attached=False))
    start = await fold_run(request, source)
    return await answer_stream(request, source, start=start, opening=start.fold.opening(is_attached=True))


async def _find_run(request: Request, form: AguiInput) -> RunRecord | None:
    """Returns the run that the ids name, if there is one already."""
    principal, redis = principal_of(request), gateway_of(request).redis
    with storage_errors():
        key = key_of(form.thread_id, form.run_id)
        run_id = await run_store.find_by_idempotency_key(redis, principal.tenant, key, principal.user)
    if run_id is None and ids.is_run_id(form.run_id):
        run_id = form.run_id
    if run_id is None:
        return None
    try:
        return await get_run(request, run_id)
    except RunNotFound:
        return None


async def _create_run(request: Request, form: AguiInput, body: Json) -> tuple[RunRecord, bool]:
    """Creates the run. Returns it, and whether another request created it at the same time."""
    props: Json = body.get("forwardedProps") or {}
    converted = list(_as_messages(form.messages))
    messages = parse_messages([known.message for known in converted], "messages")
    run = {"messages": messages, "model": props.get("model")}
    threads = thread_fields(
        form.thread_id, [ChatMessage(*pair) for pair in zip(_ids(converted), messages, strict=True)]
    )
    key = key_of(form.thread_id, form.run_id)
    try:
        created = await create_run(
            request, props, run, {"model": "forwardedProps.model"}, idempotency_key=key, threads=threads
        )
    except IdempotencyConflict:
        found = await _find_run(request, form)
        if found is None:
            raise
        return found, True
    return created, False


def key_of(thread_id: str, run_id: str) -> str:
    """Returns the idempotency key for a thread id and a run id."""
    return _KEY_PREFIX + hashlib.sha256(compact_json([thread_id, run_id]).encode()).hexdigest()


def _ids(messages: list[ChatMessage]) -> list[Any]:
    return [known.message_id for known in messages]


def _as_messages(messages: list[Json]) -> Iterator[ChatMessage]:
    """Yields the messages in the format of chat completions, not checked yet."""
    for message in messages:
        if message.get("role") in _DROPPED:
            continue
        content = message.get("content")
        converted = {**message, "content": [*map(_as_part, content)] if isinstance(content, list) else content}
        if "toolCallId" in message:
            converted["tool_call_id"] = message["toolCallId"]
        calls = message.get("toolCalls")
        if calls:
            converted["tool_calls"] = calls
        converted.pop("name", None)  # a display name; providers limit its characters
        yield ChatMessage(message.get("id"), converted)


def _as_part(part: Any) -> Any:
    source = part.get("source") if isinstance(part, dict) else None
    if not isinstance(source, dict) or part.get("type") != "image":
        return part
    url = source.get("value")
    if source.get("type") == "data":
        url = f"data:{source.get('mimeType')};base64,{url}"
    return {"type": "image_url", "image_url": {"url": url}}


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/agui", run_agent, needs(Scope.RUNS_WRITE),
        {200: ResponseSpec("The run's events.", {EVENT_STREAM: {}}, {X_RUN_ID: "The run's id."})},
        (), AguiInput, errors=[*BODY_ERRORS, *CREATION_ERRORS, *STREAM_ERRORS],
    ),
)  # fmt: skip
