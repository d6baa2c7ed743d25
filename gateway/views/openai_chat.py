"""View: OpenAI's chat completions, for its SDKs and all that use them.

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=…)
    client.chat.completions.create(model=…, messages=[…], stream=True, extra_headers={"Idempotency-Key": …})

The protocol has no positions and cannot take anything back. A client comes back with the same request under the same
`Idempotency-Key`, and gets the whole answer from its start without what is void by then. If a restart makes void what a
connection was sent, that connection ends with an error.
Spec: https://platform.openai.com/docs/api-reference/chat
"""

from io import StringIO
from typing import Any, Final, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.body import BODY_ERRORS
from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.params import IDEMPOTENCY_KEY
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.run_creation import CREATION_ERRORS
from stagebus.gateway.api.schemas.create_run import RunOptions
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.streaming.fold import END, Fold, FrameTemplate, Json, Messages, RunFacts, encode_data
from stagebus.gateway.streaming.model_pieces import is_model_stage, pieces_of
from stagebus.gateway.views.foreign_request import create_run, parse_messages, read_body, read_flag, reject
from stagebus.gateway.views.openai_errors import NO_RETRY, OPENAI_ERRORS, openai_error
from stagebus.gateway.views.view_stream import (
    STREAM_ERRORS,
    X_RUN_ID,
    answer_stream,
    find_voided,
    source_of,
    wait_for_end,
)
from stagebus.shared.domain.stage_results import CUT_REASONS
from stagebus.shared.domain.tenants import Scope

COMPLETION_PREFIX: Final = "chatcmpl-"
BETWEEN_STAGES: Final = "\n\n"
DONE: Final = b"data: [DONE]\n\n"

FIELDS: Final = {"max_tokens": "max_completion_tokens"}
# Fields with the same name and meaning in `POST /runs`.
_SAME: Final = (
    "model", "tool_choice", "parallel_tool_calls", "temperature", "top_p", "stop", "seed", "reasoning_effort", "verbosity",
    "service_tier", "metadata",
)  # fmt: skip
_UNSUPPORTED: Final = {
    "functions": "not supported; use tools",
    "function_call": "not supported; use tool_choice",
    "audio": "not supported",
}


class CreateCompletion(BaseModel):
    """A new chat completion. Other fields of the chat completions API are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, description="a model's name; the configured default if omitted")
    messages: list[Json] = Field(min_length=1, description="the conversation")
    stream: bool | None = Field(default=None, description="answer with an event stream")
    stream_options: Json | None = Field(default=None, description="`include_usage`: the last chunk has the tokens used")
    max_completion_tokens: int | None = Field(default=None, description="limit for the answer of a stage")
    max_tokens: int | None = Field(default=None, description="the same, by its older name")
    temperature: float | None = Field(default=None, description="randomness")
    top_p: float | None = Field(default=None, description="nucleus sampling")
    stop: str | list[str] | None = Field(default=None, description="texts before which the answer ends")
    seed: int | None = Field(default=None, description="makes answers repeatable, as far as the provider can")
    tools: list[Json] | None = Field(
        default=None, description="functions with the names of tools of Stagebus; all tools if omitted, none if empty"
    )
    tool_choice: str | Json | None = Field(default=None, description="`auto`, `none`, `required`, or a tool")
    parallel_tool_calls: bool | None = Field(default=None, description="whether one answer may call several tools")
    metadata: dict[str, str] | None = Field(default=None, description="key-value pairs, stored with the run")
    stagebus: RunOptions | None = Field(default=None, description="options of `POST /runs`; they win")


class ChatOptions(NamedTuple):
    """The options of a client that change the chunks. `include_usage`: the last chunk has the tokens used."""

    include_usage: bool = False


DEFAULT_OPTIONS: Final = ChatOptions()


class ChatFold(Fold):
    """Folds a run into the chunks of a chat completion, and into the completion itself."""

    def __init__(self, run: RunFacts, options: ChatOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(run)
        self._usage_field: Json = {"usage": None} if options.include_usage else {}
        self._include_usage = options.include_usage
        self._texts: list[str] = []  # of complete stages that have any
        self._thoughts = StringIO()
        self._has_spoken = False  # text of a stage was sent, so the next one needs a separator
        self._text = StringIO()  # of the stage at work
        self._stage_thoughts = StringIO()
        self._finish_reason = "stop"
        self._usage: Json | None = None
        self.error: Json | None = None
        self._content, self._reasoning = (
            FrameTemplate(self._chunk({field: ""}), field) for field in ("content", "reasoning_content")
        )

    def completion(self) -> Json:
        """Returns the chat completion of a run that is done."""
        thoughts = self._thoughts.getvalue()
        message = {
            "role": "assistant",
            "content": BETWEEN_STAGES.join(self._texts),
            "refusal": None,
            **({"reasoning_content": thoughts} if thoughts else {}),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}

    def on_run_queued(self, data: Json, sequence: int) -> Messages:
        """The message begins."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def on_tool_completion_chunk(self, data: Json, sequence: int) -> Messages:
        """The model says something."""
        messages: Messages = []
        for piece in pieces_of(data.get("tool_results")):
            if piece.is_reasoning:
                self._stage_thoughts.write(piece.text)
                messages.append(self._reasoning.encode(piece.text))
            else:
                messages.append(self._say(piece.text))
        return messages

    def on_stage_completed(self, data: Json, sequence: int) -> Messages:
        """The stage's result has the text; what chunks have not said of it follows now."""
        if not is_model_stage(data["stage_id"]):
            return []
        result = data.get("result") or {}
        text, said = result.get("text") or "", self._text.getvalue()
        messages = [self._say(text[len(said) :])] if len(text) > len(said) and text.startswith(said) else []
        if text:
            self._texts.append(text)
        self._thoughts.write(self._stage_thoughts.getvalue())
        self._has_spoken = self._has_spoken or bool(self._text.getvalue())
        reason = result.get("finish_reason")
        cut_reason = "content_filter" if reason == "content_filter" else "length"
        self._finish_reason = cut_reason if reason in CUT_REASONS else "stop"
        self._begin_stage()
        return messages

    def on_stage_restarted(self, data: Json, sequence: int) -> Messages:
        """Makes void what the stage has said: a client that has it gets an error, others nothing."""
        if not is_model_stage(data["stage_id"]):
            return []
        has_said = bool(self._text.tell() or self._stage_thoughts.tell())
        self._begin_stage()
        if not has_said:
            return []
        text = "a part of the answer is void, since its worker died; repeat the request with the same Idempotency-Key"
        return [encode_data(_error(text, "server_error", "stage_restarted")), END]

    def on_done(self, data: Json, sequence: int) -> Messages:
        """The completion is complete."""
        usage = data.get("usage") or {}
        cached, reasoning = usage.get("cached_tokens"), usage.get("reasoning_tokens")
        self._usage = {
            **{name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
            **({} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}),
            **({} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}),
        }
        messages = [self._chunk({}, self._finish_reason)]
        if self._include_usage:
            head = self._head("chat.completion.chunk")
            messages.append(encode_data({**head, "choices": [], "usage": self._usage}))
        return [*messages, DONE]

    def on_error(self, data: Json, sequence: int) -> Messages:
        """The run failed."""
        return self._fail(data.get("error") or "", "server_error", data.get("code") or "")

    def on_cancel(self, data: Json, sequence: int) -> Messages:
        """The run was cancelled."""
        return self._fail("the run was cancelled", "cancelled", "run_cancelled")

    def _fail(self, message: str, kind: str, code: str) -> Messages:
        self.error = _error(message, kind, code)
        return [encode_data(self.error)]

    def _say(self, text: str) -> bytes:
        is_first = not self._text.tell()
        self._text.write(text)
        return self._content.encode((BETWEEN_STAGES if is_first and self._has_spoken else "") + text)

    def _begin_stage(self) -> None:
        self._text, self._stage_thoughts = StringIO(), StringIO()

    def _chunk(self, delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return encode_data({**self._head("chat.completion.chunk"), "choices": [choice], **self._usage_field})

    def _head(self, kind: str) -> Json:
        return {
            "id": COMPLETION_PREFIX + self.run.run_id,
            "object": kind,
            "created": self.run.created_at // 1000,
            "model": self.run.model,
        }


def _error(message: str, kind: str, code: str) -> Json:
    return openai_error(message, kind, code).model_dump()


async def create_completion(request: Request) -> Response:
    """Create a chat completion: a run, seen through OpenAI's chat completions.

    Repeat the request with the same `Idempotency-Key` after a broken connection: it gets the whole answer again, without
    what is void by then, and the model is not asked twice. Without `stream`, the answer comes once the run has ended.
    """
    body = await read_body(request)
    is_stream, include_usage = read_flag(body, "stream"), _include_usage(body)
    run = await create_run(request, body, _as_run(body), FIELDS)
    if is_stream:
        voided = await find_voided(request, run.run_id)
        source = source_of(run, ChatFold, ChatOptions(include_usage))
        return await answer_stream(request, source, voided=voided)
    fold = await wait_for_end(request, source_of(run, ChatFold))
    if fold.error is not None:
        # Its SDKs would repeat the request, which would be another run.
        return Response(orjson.dumps(fold.error), 500, NO_RETRY, JSON)
    return Response(orjson.dumps(fold.completion()), media_type=JSON)


def _as_run(body: Json) -> Json:
    """Returns the body as one of `POST /runs`; its object `stagebus` is not part of it."""
    reject(body, _UNSUPPORTED)
    if body.get("n") not in (None, 1):
        raise invalid_fields([("n", "must be 1")])
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise invalid_fields([("response_format", "only text is supported here; POST /runs takes other formats")])
    limit = body.get("max_completion_tokens")
    return {
        "messages": parse_messages(body.get("messages"), "messages"),
        "tools": _tools(body.get("tools")),
        "max_tokens": body.get("max_tokens") if limit is None else limit,
        **{name: body.get(name) for name in _SAME},
    }


def _tools(tools: Any) -> list[str] | None:
    if tools is None:
        return None
    names: list[str] = []
    for at, tool in enumerate(tools if isinstance(tools, list) else [None]):
        match tool:
            case {"type": "function", "function": {"name": str(name)}}:
                names.append(name)
            case _:
                raise invalid_fields([(f"tools.{at}", "must be a function with the name of a tool of Stagebus")])
    return list(dict.fromkeys(names))


def _include_usage(body: Json) -> bool:
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid_fields([("stream_options", "must be an object")])
    return read_flag(options or {}, "include_usage")


# A completion and its chunks are described by OpenAI's own document.
_COMPLETION: Final[Json] = {"type": "object"}

ENDPOINTS: Final = (
    Endpoint(
        "POST", "/v1/chat/completions", create_completion, needs(Scope.RUNS_WRITE),
        {
            200: ResponseSpec(
                "The completion, or its chunks.", {JSON: _COMPLETION, EVENT_STREAM: {}}, {X_RUN_ID: "The run's id."}
            )
        },
        [IDEMPOTENCY_KEY], CreateCompletion, errors=[*BODY_ERRORS, *CREATION_ERRORS, *STREAM_ERRORS],
        error_format=OPENAI_ERRORS,
    ),
)  # fmt: skip
