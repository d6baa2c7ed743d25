"""Response models. `/openapi.json` serves their docstrings and descriptions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from stagebus.gateway.api.urls import Urls
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.tickets import SignedTicket
from stagebus.shared.domain.events import CallDeferred, InputRequired
from stagebus.shared.domain.requests import PROMPT_EXCERPT_CHARS, excerpt_of
from stagebus.shared.domain.runs import RunRecord, RunStatus
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.usage import Usage
from stagebus.shared.store.approvals import Ask, Pending
from stagebus.shared.store.run_result import StoredResult
from stagebus.shared.store.run_store import StoredStage
from stagebus.shared.store.thread_news import NO_PLACE, RunPlace
from stagebus.shared.store.tool_catalog import ASK_USER, ToolDescription


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True, json_schema_mode_override="serialization", serialize_by_alias=True)


Timestamp = Annotated[
    str, WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.123Z"]})
]


def _is_none(value: Any) -> bool:
    return value is None


class RunLinks(Answer):
    """The URLs of a run."""

    self: str = Field(description="the run")
    events: str = Field(description="the run's event stream")
    cancel: str = Field(description="POST here to cancel the run")

    @classmethod
    def of(cls, run_id: str, urls: Urls) -> "RunLinks":
        """Returns the links of a run."""
        return cls(self=urls.run(run_id), events=urls.run_events(run_id), cancel=urls.cancel(run_id))


class RunAccepted(Answer):
    """A run after it was created, cancelled or decided upon."""

    id: str = Field(description="a ULID")
    status: RunStatus = Field(description="the run's state")
    created_at: Timestamp = Field(description="when the run was created")
    thread_id: str | None = Field(
        default=None, exclude_if=_is_none, description="the run's thread, if it is part of one"
    )
    position: int | None = Field(
        default=None,
        exclude_if=_is_none,
        description="the run's place among those that wait for their turn in the thread; null if it has its turn",
    )
    steers: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description="with `on_active: steer`: the run that the messages join, or have joined",
    )
    links: RunLinks = Field(description="the run's URLs")

    @classmethod
    def of(cls, run: RunRecord, urls: Urls, place: RunPlace = NO_PLACE) -> "RunAccepted":
        """Returns the short form of a run. Args: `place`: where it waits in its thread."""
        return cls(
            id=run.run_id,
            status=run.status,
            created_at=timestamp(run.created_at),
            thread_id=run.thread_id or None,
            position=place.position,
            steers=run.merged_into or place.steers or None,
            links=RunLinks.of(run.run_id, urls),
        )


class RunError(Answer):
    """Why a run failed."""

    error: str = Field(description="a message for people")
    code: str = Field(description="a stable code for programs")


class RunSummary(RunAccepted):
    """A run in a list."""

    model: str = Field(description="the model's name, or `extraction=<name>,synthesis=<name>`")
    started_at: Timestamp | None = Field(description="when a worker first claimed the run")
    finished_at: Timestamp | None = Field(description="when the run ended")
    prompt: str = Field(
        description=f"the beginning of the last user message, at most {PROMPT_EXCERPT_CHARS} characters"
    )
    usage: Usage | None = Field(description="tokens over all stages")
    finish_reason: str | None = Field(
        default=None, description="why the answer ended, as in `result`; set once the run has ended"
    )
    error: RunError | None = Field(description="set if the run has failed")
    metadata: dict[str, str] = Field(description="the client's own key-value pairs")
    user: str | None = Field(default=None, description="the person within the tenant whose run it is, if one is known")

    @classmethod
    def of(cls, run: RunRecord, urls: Urls, place: RunPlace = NO_PLACE) -> "RunSummary":
        """Returns the summary of a run."""
        return cls(**_summary(run, urls, place))


class StageView(Answer):
    """A stage of a run."""

    stage_id: str = Field(description="`extraction`, `tools` or `synthesis`, with a number in later rounds: `tools.2`")
    status: Literal["running", "completed", "incomplete"] = Field(
        description="`incomplete`: the run ended before the stage did"
    )
    first_id: str = Field(description="the id of the stage's first event")
    usage: Usage | None = Field(description="tokens of this stage")
    model: str | None = Field(description="the model that answered, by the provider's name for it")
    provider: str | None = Field(description="the provider that answered, by its name in the configuration")
    finish_reason: str | None = Field(default=None, description="why the model's answer ended, see `result`")
    events: str = Field(description="the URL of the stage's event stream")


class PendingApproval(Answer):
    """A call that waits for a person's decision."""

    call_id: str = Field(description="the call's id")
    name: str = Field(description="the tool's name")
    arguments: str | None = Field(description="the call's arguments as JSON text; null for a question")
    question: str | None = Field(description="the model's question; null for a call that needs approval")
    expires_at: Timestamp = Field(description="the call is denied if there is no decision by this time")
    url: str = Field(description="POST the decision here")


class PendingCall(Answer):
    """A call that waits for a result from outside."""

    call_id: str = Field(description="the call's id")
    name: str = Field(description="the tool's name")
    arguments: str = Field(description="the call's arguments as JSON text")
    kind: Literal["client", "deferred"] = Field(
        description="`client`: a client runs the call; `deferred`: the tool has started something that gives the result"
    )
    ref: str = Field(description="names the call together with its id; send it with a claim or a result")
    once: bool = Field(description="only one client may ever run the call")
    expires_at: Timestamp = Field(description="the call gets an error if there is no result by this time")
    url: str = Field(description="POST the result here")


class RunResult(Answer):
    """A run's result."""

    text: str = Field(description="the model's answer, or its refusal; if the run was stopped, what there is of it")
    finish_reason: str | None = Field(
        default=None,
        description="why the answer ended: `stop`, `length` (cut off at the token limit), `content_filter`, `refusal`, "
        "or another word of the provider; if the run was stopped in mid-answer, `cancelled` or the code of its error",
    )
    partial: bool = Field(default=False, description="the run was stopped, so the answer may be incomplete")
    value: JsonValue = Field(
        default=None,
        serialization_alias="json",
        description="the answer's value, if the run asked for JSON by `response_format`",
    )


class RunView(RunSummary):
    """A run with its stages and its result."""

    attempt: int = Field(description="the number of the latest attempt; it only grows")
    tries: int = Field(description="how many attempts followed the crash of a worker")
    cancel_requested: bool = Field(description="whether somebody has asked to cancel the run")
    last_event_id: str = Field(description="the cursor at the end of the run's log")
    stages: list[StageView] = Field(description="the stages that have started, in order")
    pending_approvals: list[PendingApproval] = Field(description="calls and questions that wait for a person")
    pending_calls: list[PendingCall] = Field(default=[], description="calls that wait for a result from outside")
    cancel_reason: str | None = Field(description="why the run was to be cancelled, if a reason was given")
    result: RunResult | None = Field(description="set once the run has ended, if a model had begun to answer")
    parent_run_id: str | None = Field(
        default=None,
        exclude_if=_is_none,
        description="the turn of the thread that the run follows; null at the root, and before its turn",
    )

    @classmethod
    def of_stages(
        cls,
        run: RunRecord,
        urls: Urls,
        stages: list[StoredStage],
        result: StoredResult | None = None,
        pending: Sequence[Pending] = (),
        place: RunPlace = NO_PLACE,
    ) -> "RunView":
        """Returns the view of a run. Args: `place`: where it stands in its thread."""
        return cls(
            **_summary(run, urls, place),
            parent_run_id=place.parent_run_id or None,
            attempt=run.attempt,
            tries=run.tries,
            cancel_requested=run.cancel,
            cancel_reason=run.cancel_reason,
            last_event_id=str(run.last_id),
            stages=[_stage_view(run, urls, stage) for stage in stages],
            pending_approvals=[_pending_view(run, urls, ask) for ask in pending if not isinstance(ask, CallDeferred)],
            pending_calls=[_call_view(run, urls, call) for call in pending if isinstance(call, CallDeferred)],
            result=result
            and RunResult(
                text=result.text, finish_reason=result.finish_reason, partial=result.is_partial, value=result.json
            ),
        )


class RunList(Answer):
    """A page of runs, newest first."""

    runs: list[RunSummary] = Field(description="the runs of this page")
    next: str | None = Field(
        description="pass it as `before` to get the next page, which may exist even if this one is short; "
        "null on the last page"
    )


class TicketLinks(Answer):
    """The URLs that a ticket opens."""

    events: str = Field(description="the run's event stream, for an `EventSource`")
    page: str = Field(description="the web page that shows the run, for sharing")


class TicketView(Answer):
    """A ticket for one run."""

    id: str = Field(description="the ticket's id in logs and for revocation; not a secret")
    ticket: str = Field(
        description="the secret: the query parameter `ticket` of the run's URL and of its event streams"
    )
    expires_at: Timestamp = Field(description="the ticket is invalid from this time on")
    links: TicketLinks = Field(description="the URLs that the ticket opens")

    @classmethod
    def of(cls, ticket: SignedTicket, run_id: str, urls: Urls) -> "TicketView":
        """Returns the view of a ticket for a run."""
        expires_at = timestamp(round(ticket.expires_at) * 1000)
        links = TicketLinks(
            events=urls.events_with_ticket(run_id, ticket.text), page=urls.page_with_ticket(run_id, ticket.text)
        )
        return cls(id=ticket.ticket_id, ticket=ticket.text, expires_at=expires_at, links=links)


class SessionView(Answer):
    """The caller's identity and permissions."""

    tenant: str = Field(description="the caller's tenant")
    subject: str = Field(
        description="the caller in the audit log: `key:<id>`, `jwt:<sub>` or `anyone`, and ` for <user>` where it acts for one"
    )
    user: str | None = Field(description="the person within the tenant for whom the caller acts, if there is one")
    scopes: list[Scope] = Field(description="what the caller may do")
    expires_at: Timestamp | None = Field(description="null: valid until the key is revoked")

    @classmethod
    def of(cls, principal: Principal) -> "SessionView":
        """Returns the view of a principal."""
        return cls(
            tenant=principal.tenant,
            subject=principal.subject,
            user=principal.user or None,
            scopes=sorted(principal.scopes),
            expires_at=None if principal.expires_at is None else timestamp(round(principal.expires_at) * 1000),
        )


class ToolList(Answer):
    """The tools that a run may use."""

    tools: list[ToolDescription] = Field(description="the tools, by name")


class Health(Answer):
    """The gateway is healthy."""

    status: Literal["ok"] = Field(default="ok", description="always `ok`; other states are errors")


class FieldError(Answer):
    """An invalid field."""

    field: str = Field(description="the field's path, such as `messages.0.content`; empty for the whole body")
    message: str = Field(description="what is wrong with it")


class Problem(Answer):
    """An error as problem details (RFC 9457)."""

    type: str = Field(
        description="the URL of the problem type's explanation, or `about:blank` if the status says everything"
    )
    title: str = Field(description="the problem type in a few words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what went wrong in this case, and what to do")
    code: str = Field(description="a stable code for programs")
    errors: list[FieldError] = Field(default=[], description="the invalid fields of the request")
    run_id: str | None = Field(
        default=None,
        exclude_if=lambda run_id: not run_id,
        description="of `thread_busy`: the run that is in the way; of `merged`: the run that has the messages",
    )
    request_digest: str | None = Field(
        default=None,
        exclude_if=lambda digest: not digest,
        description="of `thread_busy`: the SHA-256 of that run's request, by which a client that repeats a request without "
        "an `Idempotency-Key` recognises its own run",
    )


class ProblemType(Answer):
    """The explanation of a problem type."""

    type: str = Field(description="the URL of this explanation")
    title: str = Field(description="the problem type in a few words")
    status: int = Field(description="the HTTP status")
    code: str = Field(description="the `code` of such problems")
    description: str = Field(description="what the problem means")
    retryable: bool = Field(description="whether the same request may succeed later")


def timestamp(unix_ms: int) -> str:
    """Formats a time as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _summary(run: RunRecord, urls: Urls, place: RunPlace = NO_PLACE) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "status": run.status,
        "model": run.model,
        "created_at": timestamp(run.created_at),
        "started_at": timestamp(run.started_at) if run.started_at else None,
        "finished_at": timestamp(run.finished_at) if run.finished_at else None,
        "prompt": excerpt_of(run.request),
        "usage": run.usage,
        "finish_reason": run.finish_reason,
        "error": run.error,
        "metadata": run.request.get("metadata", {}),
        "thread_id": run.thread_id or None,
        "position": place.position,
        "steers": run.merged_into or place.steers or None,
        "user": run.user or None,
        "links": RunLinks.of(run.run_id, urls),
    }


def _stage_view(run: RunRecord, urls: Urls, stage: StoredStage) -> StageView:
    status: Literal["running", "completed", "incomplete"] = "incomplete" if run.is_terminal else "running"
    result = stage.completed.result if stage.completed else {}
    return StageView(
        stage_id=stage.stage_id,
        status="completed" if stage.completed else status,
        first_id=str(stage.first_id),
        usage=stage.completed and stage.completed.usage,
        model=result.get("model"),
        provider=result.get("provider"),
        finish_reason=result.get("finish_reason"),
        events=urls.stage_events(run.run_id, stage.stage_id),
    )


def _pending_view(run: RunRecord, urls: Urls, ask: Ask) -> PendingApproval:
    question: dict[str, str | None]
    if isinstance(ask, InputRequired):
        question = {"name": ASK_USER, "arguments": None, "question": ask.question}
    else:
        question = {"name": ask.name, "arguments": ask.arguments, "question": None}
    return PendingApproval(
        call_id=ask.call_id,
        expires_at=timestamp(ask.expires_at),
        url=urls.approval(run.run_id, ask.call_id),
        **question,
    )


def _call_view(run: RunRecord, urls: Urls, call: CallDeferred) -> PendingCall:
    return PendingCall(
        **call.model_dump(include=set(PendingCall.model_fields) - {"expires_at", "url"}),
        expires_at=timestamp(call.expires_at),
        url=urls.call_result(run.run_id, call.call_id),
    )
