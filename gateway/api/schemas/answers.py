"""What the gateway answers, as pydantic models; `/openapi.json` is made from them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from stagebus.gateway.api import routes
from stagebus.gateway.auth.principal import Principal
from stagebus.gateway.auth.tickets import SignedTicket
from stagebus.shared.config.provider_schema import ANY, Abilities
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.domain.events import InputRequired
from stagebus.shared.domain.requests import PROMPT_EXCERPT_CHARS, prompt_excerpt
from stagebus.shared.domain.runs import RunRecord, RunStatus
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.domain.usage import Usage
from stagebus.shared.store.approvals import Ask
from stagebus.shared.store.run_store import StageView as StoredStage
from stagebus.shared.store.run_store import answer_text
from stagebus.shared.store.tool_catalog import ASK_USER, ToolDescription


class Answer(BaseModel):
    """Something that the gateway says."""

    model_config = ConfigDict(frozen=True, json_schema_mode_override="serialization")


Timestamp = Annotated[
    str, WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.123Z"]})
]


class RunLinks(Answer):
    """Where to go on from a run."""

    self: str
    events: str
    cancel: str


class RunAccepted(Answer):
    """A run that exists: made, or asked to stop."""

    id: str
    status: RunStatus
    created_at: Timestamp
    links: RunLinks

    @classmethod
    def of(cls, run: RunRecord) -> "RunAccepted":
        """The answer to those who acted on a run."""
        return cls(id=run.run_id, status=run.status, created_at=timestamp(run.created_at), links=links_of(run))


class RunError(Answer):
    """Why a run failed; `code` is stable."""

    error: str
    code: str


class RunSummary(RunAccepted):
    """A run in a list."""

    model: str
    started_at: Timestamp | None
    finished_at: Timestamp | None
    prompt: str = Field(description=f"how the last user message begins, at most {PROMPT_EXCERPT_CHARS} characters")
    usage: Usage | None
    error: RunError | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, run: RunRecord) -> "RunSummary":
        """The summary of a record."""
        return cls(**_summary(run))


class StageView(Answer):
    """A stage of a run."""

    stage_id: str
    status: Literal["running", "completed", "incomplete"] = Field(
        description="incomplete: the run ended before the stage did"
    )
    first_id: str = Field(description="the id of its first event")
    usage: Usage | None
    model: str | None = Field(description="which model answered, as its provider names it")
    provider: str | None = Field(description="which provider answered, as the operator calls it")
    events: str = Field(description="where its own stream is")


class PendingApproval(Answer):
    """A call that waits for a person."""

    call_id: str
    name: str = Field(description="the tool")
    arguments: str | None = Field(description="JSON text, as the model wrote it; null where it asks a question")
    question: str | None = Field(description="what the model asks; null where a call wants an approval")
    expires_at: Timestamp = Field(description="when the call counts as denied")
    url: str = Field(description="where to POST the decision")


class RunResult(Answer):
    """What a run came to."""

    text: str


class RunView(RunSummary):
    """A run."""

    attempt: int = Field(description="the number of the last claim; it only grows")
    tries: int = Field(description="claims that followed a worker's death")
    cancel_requested: bool
    last_event_id: str = Field(description="the cursor at the end of its log")
    stages: list[StageView]
    pending_approvals: list[PendingApproval] = Field(description="what the run asks persons now")
    result: RunResult | None = Field(description="set once the run has succeeded")

    @classmethod
    def of_stages(cls, run: RunRecord, stages: list[StoredStage], pending: Sequence[Ask] = ()) -> "RunView":
        """The view of a record, its stages and what it asks."""
        text = answer_text(stages) if run.status is RunStatus.SUCCEEDED else None
        return cls(
            **_summary(run),
            attempt=run.attempt,
            tries=run.tries,
            cancel_requested=run.cancel,
            last_event_id=str(run.last_id),
            stages=[_stage_view(run, stage) for stage in stages],
            pending_approvals=[_pending_view(run, ask) for ask in pending],
            result=None if text is None else RunResult(text=text),
        )


class RunList(Answer):
    """Runs, newest first."""

    runs: list[RunSummary]
    next: str | None = Field(
        description="give it as `before` for the next page, which there is even where this one is short; null on the last one"
    )


class TicketLinks(Answer):
    """Where a ticket leads."""

    events: str = Field(description="the run's stream, for an EventSource")
    page: str = Field(description="the page that shows the run, to pass on")


class TicketView(Answer):
    """A ticket for one run."""

    id: str = Field(description="names it in logs, and where it is taken back")
    ticket: str = Field(description="goes into the query, as `ticket`, of the run's URL and of its streams'")
    expires_at: Timestamp
    links: TicketLinks

    @classmethod
    def of(cls, ticket: SignedTicket, links: TicketLinks) -> "TicketView":
        """The answer to those who asked for it."""
        expires_at = timestamp(round(ticket.expires_at) * 1000)
        return cls(id=ticket.ticket_id, ticket=ticket.text, expires_at=expires_at, links=links)


class SessionView(Answer):
    """Who one is here."""

    tenant: str
    subject: str = Field(description="as the audit names them: key:<id>, jwt:<sub>, anyone")
    scopes: list[Scope]
    expires_at: Timestamp | None = Field(description="null: as long as the key holds")

    @classmethod
    def of(cls, principal: Principal) -> "SessionView":
        """What those who ask may know of themselves."""
        return cls(
            tenant=principal.tenant,
            subject=principal.subject,
            scopes=sorted(principal.scopes),
            expires_at=None if principal.expires_at is None else timestamp(round(principal.expires_at) * 1000),
        )


class ToolList(Answer):
    """The tools that a run may name."""

    tools: list[ToolDescription]


class ModelPrice(Answer):
    """What a million tokens of a model cost."""

    input: float
    output: float
    cached: float = Field(description="of those tokens of a prompt that the provider had at hand")
    currency: str = Field(description="ISO 4217")


class ModelView(Answer):
    """A model that a run may name."""

    id: str
    is_default: bool
    provider: str = Field(description="who serves it, as the operator calls them")
    abilities: Abilities
    fallbacks: list[str] = Field(description="what is asked in its place while it is down, in order")
    price: ModelPrice | None = Field(description="the operator's; null where none is set")


class ModelList(Answer):
    """The models that a run may name."""

    models: list[ModelView]
    patterns: list[str] = Field(description="further names, where a * stands for anything")
    any_model: bool = Field(description="whether any other name goes to a provider as it is")

    @classmethod
    def of(cls, providers: Providers, default: str) -> "ModelList":
        """What the providers serve."""
        names = dict.fromkeys([*providers.names(), *([default] if default else [])])
        patterns = providers.patterns()
        return cls(
            models=[_model_view(name, providers.routes(name), default) for name in names],
            patterns=[pattern for pattern in patterns if pattern != ANY],
            any_model=ANY in patterns,
        )


class Health(Answer):
    """The process answers."""

    status: Literal["ok"] = "ok"


class StreamedEvent(Answer):
    """One event of a log, as the stream sends it."""

    id: str
    event: str
    data: dict[str, JsonValue] = Field(description="see /schema/events.json")


class LostPart(Answer):
    """The cursor does not stand in the log; drop what you have from `earliest` on."""

    requested: str
    earliest: str
    latest: str


class EventPage(Answer):
    """A part of a run's log."""

    events: list[StreamedEvent]
    last_event_id: str = Field(description="the cursor for the next page")
    has_more: bool = Field(description="whether the log went on after this page when it was read")
    is_ended: bool = Field(description="whether these are the run's last events")
    gap: LostPart | None = None


class FieldError(Answer):
    """What is wrong with one field."""

    field: str = Field(description="its path, such as messages.0.content; empty for the whole body")
    message: str


class Problem(Answer):
    """An error, RFC 9457."""

    type: str = Field(description="stable; a URL that says more, or about:blank where the status says it all")
    title: str
    status: int
    detail: str = Field(description="what to do")
    code: str = Field(description="stable")
    errors: list[FieldError] = Field(default=[], description="the fields that do not hold")


class ProblemType(Answer):
    """What a problem's `type` means."""

    type: str
    title: str
    status: int
    code: str
    description: str
    retryable: bool = Field(description="whether the same request may simply be made again")


# --- from records ------------------------------------------------------------


def timestamp(unix_ms: int) -> str:
    """ISO 8601, UTC, with milliseconds."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def links_of(run: RunRecord) -> RunLinks:
    """A run's links."""
    return RunLinks(**routes.run_links(run.run_id))


def _summary(run: RunRecord) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "status": run.status,
        "model": run.model,
        "created_at": timestamp(run.created_at),
        "started_at": timestamp(run.started_at) if run.started_at else None,
        "finished_at": timestamp(run.finished_at) if run.finished_at else None,
        "prompt": prompt_excerpt(run.request.get("messages", [])),
        "usage": run.usage,
        "error": run.error,
        "metadata": run.request.get("metadata", {}),
        "links": links_of(run),
    }


def _stage_view(run: RunRecord, stage: StoredStage) -> StageView:
    status: Literal["running", "completed", "incomplete"] = "incomplete" if run.is_terminal else "running"
    result = stage.completed.result if stage.completed else {}
    return StageView(
        stage_id=stage.stage_id,
        status="completed" if stage.completed else status,
        first_id=str(stage.first_id),
        usage=stage.completed and stage.completed.usage,
        model=result.get("model"),
        provider=result.get("provider"),
        events=routes.stage_events_url(run.run_id, stage.stage_id),
    )


def _model_view(name: str, routes: Sequence[ModelRoute], default: str) -> ModelView:
    first, *fallbacks = routes
    if first.name != name:  # an alias, which stands for all of them
        fallbacks = [*routes]
    return ModelView(
        id=name,
        is_default=name == default,
        provider=first.provider,
        abilities=first.abilities,
        fallbacks=[route.name for route in fallbacks],
        price=_price_view(first),
    )


def _price_view(route: ModelRoute) -> ModelPrice | None:
    price = route.price
    if price is None:
        return None
    cached = price.input if price.cached is None else price.cached
    return ModelPrice(input=price.input, output=price.output, cached=cached, currency=route.currency)


def _pending_view(run: RunRecord, ask: Ask) -> PendingApproval:
    asked: dict[str, str | None]
    if isinstance(ask, InputRequired):
        asked = {"name": ASK_USER, "arguments": None, "question": ask.question}
    else:
        asked = {"name": ask.name, "arguments": ask.arguments, "question": None}
    return PendingApproval(
        call_id=ask.call_id,
        expires_at=timestamp(ask.expires_at),
        url=routes.approval_url(run.run_id, ask.call_id),
        **asked,
    )
