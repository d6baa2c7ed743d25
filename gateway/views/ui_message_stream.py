"""The AI SDK's UI message stream, version 1: `useChat` with its default transport or the workflow transport.

    POST /api/chat                                  a run from the chat's messages, and its stream
    GET  /api/chat/{chat or run id}/stream          the stream from its start, then live; 204: nothing to resume
    GET  /api/chat/{chat or run id}/stream?startIndex=N   from chunk N on; a negative N counts from the end
    POST /api/chat/{chat or run id}/stop            cancels the run

Spec: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol#data-stream-protocol,
https://ai-sdk.dev/docs/ai-sdk-ui/chatbot-resume-streams
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS
from stagebus.gateway.api.endpoint import Endpoint, ParameterSpec, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import IDEMPOTENCY_KEY
from stagebus.gateway.api.responses import EVENT_STREAM, json_response
from stagebus.gateway.api.run_creation import CREATION_ERRORS
from stagebus.gateway.api.schemas.answers import RunAccepted
from stagebus.gateway.api.schemas.create_run import RunOptions
from stagebus.gateway.api.schemas.validation import parse_form
from stagebus.gateway.api.urls import urls_of
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.views.chat_threads import ChatMessage, thread_fields
from stagebus.gateway.views.foreign_request import create_run, read_body
from stagebus.gateway.views.ui_message_fold import UiMessageFold
from stagebus.gateway.views.view_stream import (
    STREAM_ERRORS,
    X_RUN_ID,
    answer_stream,
    find_voided,
    fold_run,
    get_run,
    source_of,
)
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest, RunNotFound, StorageUnavailable
from stagebus.shared.observability.audit import audit
from stagebus.shared.position_errors import BadStartIndex
from stagebus.shared.storage.redis_client import storage_errors
from stagebus.shared.store import chat_runs, run_store

CHAT_ID_MAX_CHARS: Final = 256
# No path can contain others.
CHAT_ID_PATTERN: Final = r"^[^\x00-\x1f\x7f]*$"
VERSION_HEADER: Final = "x-vercel-ai-ui-message-stream"
RUN_HEADER: Final = "x-workflow-run-id"
TAIL_HEADER: Final = "x-workflow-stream-tail-index"

_START_INDEX: Final = re.compile(r"-?[0-9]{1,9}")
_ROLES: Final = ("system", "user", "assistant")
_PARAGRAPH: Final = "\n\n"


class LenientModel(BaseModel):
    """A part of a body. Fields that have no meaning for Stagebus are dropped."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)


class UiPart(LenientModel):
    """A part of a message. Text and images count."""

    type: str = Field(description="`text`, `file`, or another type, which is dropped")
    text: str = Field(default="", description="the text of a `text` part")
    url: str = Field(default="", description="the URL of a `file` part, or a `data:` URL with its content")
    media_type: str = Field(default="", alias="mediaType", description="the media type of a `file` part")


class UiMessage(LenientModel):
    """A message of the chat."""

    id: Any = Field(default=None, description="`msg_<run id>` for the answer of a run")
    role: str = Field(description="`system`, `user` or `assistant`")
    parts: list[UiPart] = Field(default=[], description="the message's parts")


class PostChat(LenientModel):
    """The chat's messages, as `DefaultChatTransport` and `WorkflowChatTransport` send them."""

    id: Annotated[str, Field(min_length=1, max_length=CHAT_ID_MAX_CHARS, pattern=CHAT_ID_PATTERN)] | None = Field(
        default=None,
        description="the chat's id; it then stands for its newest run, and the chat is the thread of this id",
    )
    messages: list[UiMessage] = Field(min_length=1, description="the conversation; the run answers its last message")
    model: Any = Field(default=None, description="as in `POST /runs`")
    metadata: Any = Field(default=None, description="as in `POST /runs`")
    stagebus: RunOptions | None = Field(default=None, description="options of `POST /runs`; they win")


async def post_chat(request: Request) -> Response:
    """Create a run from a chat's messages and stream it as a UI message.

    A chat with an id is a thread: the message after the last known answer is its next turn, which follows that answer; it
    interrupts one that is being written. A history that ends earlier, to edit or to ask again, begins a branch there.
    With an `Idempotency-Key`, the same request streams the same run again, from its start.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    body = await read_body(request, takes_text=True)
    form = parse_form(PostChat, body)
    conversation = list(_as_messages(form.messages))
    messages = [known.message for known in conversation]
    fields = {"messages": messages, "model": form.model, "metadata": form.metadata}
    threads = thread_fields(form.id, conversation) if form.id is not None else ()
    run = await create_run(request, body, fields, {}, threads=threads)
    if form.id is not None:
        with storage_errors():
            await chat_runs.point_chat(
                gateway.redis, gateway.settings, principal.tenant, form.id, run.run_id, principal.user
            )
    return await answer_stream(request, source_of(run, UiMessageFold), headers=_headers(run))


async def resume_chat(request: Request) -> Response:
    """Stream the newest run of a chat from its start or from a chunk on, then live.

    Without `startIndex`, parts that a restart has made void by now are left out.
    """
    wanted = request.query_params.get("startIndex")
    if wanted is not None and not _START_INDEX.fullmatch(wanted):
        raise BadStartIndex
    try:
        run = await _find_run(request)
    except RunNotFound:
        return Response(status_code=204)
    source = source_of(run, UiMessageFold)
    if wanted is None:
        voided = await find_voided(request, run.run_id)
        return await answer_stream(request, source, voided=voided, headers=_headers(run))
    index, headers = int(wanted), _headers(run)
    if index < 0:
        count = (await fold_run(request, source)).message_count
        index = max(0, count + index)
        headers[TAIL_HEADER] = str(count - 1)
    start = await fold_run(request, source, until=index - 1) if index else None
    if start is not None and not start.is_found:
        raise BadStartIndex
    return await answer_stream(request, source, start=start, headers=headers)


async def stop_chat(request: Request) -> Response:
    """Cancel the newest run of a chat.

    Safe to repeat.
    """
    gateway, principal = gateway_of(request), principal_of(request)
    run_id = (await _find_run(request)).run_id
    await run_store.cancel_run(gateway.redis, gateway.settings, run_id, principal.owner)
    audit("run.cancel", subject=principal.subject, tenant=principal.tenant, run=run_id)
    run = await run_store.get_run(gateway.redis, run_id, principal.owner)
    status = 200 if run.is_terminal else 202
    return json_response(RunAccepted.of(run, urls_of(request)), status, {X_RUN_ID: run_id})


async def _find_run(request: Request) -> RunRecord:
    """Returns the newest run of the chat in the path, or the run of that id.

    Raises:
        RunNotFound: the caller has neither.
    """
    chat_id: str = request.path_params["chat_id"]
    principal = principal_of(request)
    with storage_errors():
        run_id = await chat_runs.find_run(gateway_of(request).redis, principal.tenant, chat_id, principal.user)
    return await get_run(request, run_id or chat_id)


def _headers(run: RunRecord) -> dict[str, str]:
    return {VERSION_HEADER: "v1", RUN_HEADER: run.run_id}


def _as_messages(messages: list[UiMessage]) -> Iterator[ChatMessage]:
    for message in messages:
        texts = [part.text for part in message.parts if part.type == "text" and part.text]
        images = [part for part in message.parts if part.type == "file" and part.media_type.startswith("image/")]
        if message.role == "user" and (images or len(texts) > 1):
            parts = [{"type": "text", "text": text} for text in texts]
            parts += [{"type": "image_url", "image_url": {"url": image.url}} for image in images]  # type: ignore[dict-item]
            yield ChatMessage(message.id, {"role": "user", "content": parts})
        elif message.role in _ROLES and texts:
            yield ChatMessage(message.id, {"role": message.role, "content": _PARAGRAPH.join(texts)})


CHAT_ID: Final = ParameterSpec(
    "chat_id", "path", "The chat's id, or that of a run.", {"type": "string", "minLength": 1}
)
START_INDEX: Final = ParameterSpec(
    "startIndex", "query", "The number of the first chunk, from 0 on; a negative one counts from the end.",
    {"type": "string", "pattern": rf"^{_START_INDEX.pattern}$"},
)  # fmt: skip
_STREAM: Final = ResponseSpec(
    "The chunks of the run's assistant message.",
    {EVENT_STREAM: {}},
    {
        X_RUN_ID: "The run's id.",
        RUN_HEADER: "The run's id.",
        VERSION_HEADER: "`v1`.",
        TAIL_HEADER: "With a negative `startIndex`: the number of the last chunk so far.",
    },
)

ENDPOINTS: Final = (
    Endpoint(
        "POST", "/api/chat", post_chat, needs(Scope.RUNS_WRITE), {200: _STREAM}, [IDEMPOTENCY_KEY], PostChat,
        errors=[*BODY_ERRORS, *CREATION_ERRORS, *STREAM_ERRORS],
    ),
    Endpoint(
        "GET", "/api/chat/{chat_id:path}/stream", resume_chat, needs(Scope.RUNS_READ, takes_ticket=True),
        {200: _STREAM, 204: ResponseSpec("There is no such chat or run.")},
        [CHAT_ID, START_INDEX], errors=[BadStartIndex, *STREAM_ERRORS],
    ),
    Endpoint(
        "POST", "/api/chat/{chat_id:path}/stop", stop_chat, needs(Scope.RUNS_CANCEL),
        {
            202: ResponseSpec.json("A worker is stopping the run.", RunAccepted),
            200: ResponseSpec.json("The run has ended, cancelled or otherwise.", RunAccepted),
        },
        [CHAT_ID], errors=[RunNotFound, InvalidRequest, StorageUnavailable],
    ),
)  # fmt: skip
