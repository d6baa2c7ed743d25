"""What each URL takes and gives, as a table; `openapi.py` makes the document of it.

A test holds it against the app's routes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from stagebus.gateway.api import routes
from stagebus.gateway.api.event_endpoints import PAGE_LIMIT_DEFAULT, PAGE_LIMIT_MAX
from stagebus.gateway.api.params import (
    CHUNKS,
    IDEMPOTENCY_KEY_PATTERN,
    METADATA_PREFIX,
    MODEL_PATTERN,
    SEARCH_MAX_CHARS,
    STATUSES_PATTERN,
)
from stagebus.gateway.api.run_endpoints import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX
from stagebus.gateway.api.schemas.answers import (
    EventPage,
    Health,
    ModelList,
    ProblemType,
    RunAccepted,
    RunList,
    RunView,
    SessionView,
    TicketView,
    ToolList,
)
from stagebus.gateway.api.schemas.approval_decision import Decide
from stagebus.gateway.api.schemas.create_run import METADATA_VALUE_MAX_CHARS, CreateRun
from stagebus.gateway.api.schemas.stats_answer import Stats
from stagebus.gateway.api.schemas.ticket_request import TicketRequest
from stagebus.gateway.auth.tickets import ID_PATTERN as TICKET_ID
from stagebus.shared.access_errors import CrossSite, TokensUsedUp, TooManyRevoked, TooManyRuns
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import CURSOR_PATTERN
from stagebus.shared.domain.runs import STAGE_IDS
from stagebus.shared.errors import (
    ApprovalConflict,
    ApprovalNotFound,
    BadCursor,
    BadIdempotencyKey,
    BadJson,
    BodyTooLarge,
    Draining,
    IdempotencyConflict,
    InvalidRequest,
    RunEnded,
    RunNotFound,
    StagebusError,
    StageNotFound,
    StorageFull,
    StorageUnavailable,
    UnsupportedMediaType,
)

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"

# By media type: a model, or a schema for what is none.
Contents = Mapping[str, "type[BaseModel] | dict[str, Any]"]


@dataclass(frozen=True)
class Parameter:
    """Something in the path, the query or a header."""

    name: str
    where: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer that is no error."""

    description: str
    contents: Contents = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """One method of one URL; its name is its handler's."""

    method: str
    path: str
    name: str
    summary: str
    replies: Mapping[int, Reply]
    parameters: Sequence[Parameter] = ()
    body: type[BaseModel] | None = None
    errors: Sequence[type[StagebusError]] = ()
    is_body_optional: bool = False


_TEXT: Final = {"type": "string"}
_STREAM: Final[dict[str, Any]] = {}  # no schema of OpenAPI 3.1 is one of a stream's events; /schema/events.json is
_OBJECT: Final = {"type": "object"}
_CURSOR: Final = {"type": "string", "pattern": CURSOR_PATTERN, "examples": ["5204-118", "0", "-1"]}


def _count(maximum: int, default: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}


RUN_ID: Final = Parameter("run_id", "path", "a run's id, a ULID", {"type": "string", "pattern": f"^{ids.PATTERN}$"})
STAGE_ID: Final = Parameter(
    "stage_id", "path", "a stage; in a later round extraction.2, tools.2", {"type": "string", "enum": sorted(STAGE_IDS)}
)
FILTER_PARAMETERS: Final = (
    Parameter(
        "status",
        "query",
        "only runs in one of these states: queued,running",
        {"type": "string", "pattern": f"^{STATUSES_PATTERN}$"},
    ),
    Parameter(
        "model",
        "query",
        "only runs of this model, in any of their stages",
        {"type": "string", "pattern": f"^{MODEL_PATTERN}$"},
    ),
    Parameter(
        "q",
        "query",
        "only runs whose id begins so, or that have it in `prompt` or in a value of `metadata`, in any case",
        {"type": "string", "minLength": 1, "maxLength": SEARCH_MAX_CHARS},
    ),
    Parameter(
        f"{METADATA_PREFIX}<key>",
        "query",
        "only runs with this value in their metadata, such as metadata.user=42",
        {"type": "string", "maxLength": METADATA_VALUE_MAX_CHARS},
    ),
)
STREAM_PARAMETERS: Final = (
    Parameter("Last-Event-ID", "header", "the id of the last event seen; wins over the query", _CURSOR),
    Parameter("last_event_id", "query", "the same, for a page that was reloaded and has no header", _CURSOR),
    Parameter("chunks", "query", "full: whole chat completion chunks instead of lean ones", {"enum": CHUNKS}),
)
EVENT_PARAMETERS: Final = (
    *STREAM_PARAMETERS,
    Parameter("limit", "query", "events of a JSON page", _count(PAGE_LIMIT_MAX, PAGE_LIMIT_DEFAULT)),
)
STREAM_HEADERS: Final = {
    "X-Last-Event-Id": "a stream's: the log's end when it was asked; what comes up to it is history",
    "X-Ping-S": "a stream's: it brings something, if only a comment, at least this often",
}
OVER: Final = Reply("The run has ended and the cursor is at its end: stop asking.")
EVENT_REPLIES: Final = {
    200: Reply(
        "The events after the cursor, then live until the run's terminal event; or a page of them as JSON. The data "
        "of each is described by /schema/events.json. Opens with `gap` where the cursor does not stand in the log.",
        {EVENT_STREAM: _STREAM, JSON: EventPage},
        STREAM_HEADERS,
    ),
    204: OVER,
}

OPERATIONS: Final = (
    Operation(
        "post", routes.RUNS, "create_run", "Make a run and put it into the queue.",
        {
            202: Reply("The run exists and is never lost.", {JSON: RunAccepted}, {"Location": "the run's URL"}),
            200: Reply(
                "With Accept: text/event-stream, the run's stream; where the Idempotency-Key made it before, after the "
                "cursor.", {EVENT_STREAM: _STREAM},
                {"Location": "the run's URL", "X-Run-Id": "the run's id", **STREAM_HEADERS},
            ),
            204: OVER,
        },
        [
            Parameter(
                "Idempotency-Key", "header", "the same key and body give the same run again",
                {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY_PATTERN}$"},
            ),
            *STREAM_PARAMETERS,
        ],
        CreateRun,
        [BadJson, BadCursor, BadIdempotencyKey, BodyTooLarge, UnsupportedMediaType, InvalidRequest, IdempotencyConflict,
         TooManyRuns, TokensUsedUp, StorageFull, StorageUnavailable],
    ),
    Operation(
        "get", routes.RUNS, "list_runs", "Runs, newest first; all, or those that every given filter wants.",
        {200: Reply("A page of runs.", {JSON: RunList})},
        [
            Parameter("limit", "query", "how many at the most", _count(LIST_LIMIT_MAX, LIST_LIMIT_DEFAULT)),
            Parameter("before", "query", "the `next` of the page before", RUN_ID.schema),
            *FILTER_PARAMETERS,
        ],
        errors=[InvalidRequest, StorageUnavailable],
    ),
    Operation(
        "get", routes.RUN, "get_run", "One run with its stages and its result.",
        {200: Reply("The run.", {JSON: RunView})},
        [RUN_ID], errors=[RunNotFound, StorageUnavailable],
    ),
    Operation(
        "get", routes.RUN_EVENTS, "stream_run", "A run's events: the log after the cursor, then live.",
        EVENT_REPLIES, [RUN_ID, *EVENT_PARAMETERS],
        errors=[BadCursor, RunNotFound, InvalidRequest, StorageUnavailable],
    ),
    Operation(
        "get", routes.STAGE_EVENTS, "stream_stage", "One stage's events, and the run's terminal one.",
        EVENT_REPLIES, [RUN_ID, STAGE_ID, *EVENT_PARAMETERS],
        errors=[BadCursor, RunNotFound, StageNotFound, InvalidRequest, StorageUnavailable],
    ),
    Operation(
        "post", routes.RUN_CANCEL, "cancel_run", "Stop a run in whatever state it is; safe to repeat.",
        {
            202: Reply("Its worker ends it.", {JSON: RunAccepted}),
            200: Reply("It has ended, in whatever way.", {JSON: RunAccepted}),
        },
        [RUN_ID], errors=[RunNotFound, StorageUnavailable],
    ),
    Operation(
        "post", routes.RUN_APPROVAL, "decide_call",
        "Approve or deny a call that waits, or answer the model's question; safe to repeat.",
        {
            202: Reply("The decision stands, and the run goes on with it.", {JSON: RunAccepted}),
            200: Reply("The same decision stands, and the run has ended since.", {JSON: RunAccepted}),
        },
        [RUN_ID, Parameter("call_id", "path", "the call, as `pending_approvals` names it", _TEXT)],
        Decide,
        [BadJson, BodyTooLarge, UnsupportedMediaType, InvalidRequest, RunNotFound, ApprovalNotFound, ApprovalConflict,
         RunEnded, StorageUnavailable],
    ),
    Operation(
        "post", routes.RUN_TICKET, "create_ticket", "A ticket for whoever is to look at this run, and at nothing else.",
        {200: Reply("The ticket, for the query of an EventSource, and a link to pass on.", {JSON: TicketView})},
        [RUN_ID], TicketRequest, is_body_optional=True,
        errors=[BadJson, RunNotFound, BodyTooLarge, UnsupportedMediaType, InvalidRequest, StorageUnavailable],
    ),
    Operation(
        "delete", routes.RUN_TICKET_ONE, "revoke_ticket",
        "Take a ticket back: nobody gets in by it any more, and streams that it opened end. Safe to repeat.",
        {204: Reply("It is worthless.")},
        [RUN_ID, Parameter("ticket_id", "path", "the ticket's `id`", {"type": "string", "pattern": f"^{TICKET_ID}$"})],
        errors=[RunNotFound, TooManyRevoked, InvalidRequest, StorageUnavailable],
    ),
    Operation(
        "post", routes.SESSION, "create_session", "Let this browser's pages in, with a cookie instead of the key.",
        {200: Reply("Who one is from now on.", {JSON: SessionView}, {"Set-Cookie": "the session"})},
        errors=[CrossSite, StorageUnavailable],
    ),
    Operation(
        "get", routes.SESSION, "get_session", "Who one is here, and what one may do.",
        {200: Reply("This one.", {JSON: SessionView})}, errors=[StorageUnavailable],
    ),
    Operation(
        "delete", routes.SESSION, "end_session", "Have this browser forget its session.",
        {204: Reply("It has.", headers={"Set-Cookie": "no session"})}, errors=[CrossSite],
    ),
    Operation(
        "get", routes.TOOLS, "list_tools", "The tools that a run may name.",
        {200: Reply("What the workers have published.", {JSON: ToolList})}, errors=[StorageUnavailable],
    ),
    Operation(
        "get", routes.MODELS, "list_models", "The models that a run may name.",
        {200: Reply("The operator's.", {JSON: ModelList})},
    ),
    Operation("get", routes.HEALTH, "get_health", "The process answers.", {200: Reply("It does.", {JSON: Health})}),
    Operation(
        "get", routes.READY, "get_ready", "Whether new clients may be sent here.",
        {200: Reply("They may.", {JSON: Health})}, errors=[Draining, StorageUnavailable],
    ),
    Operation(
        "get", routes.METRICS, "get_metrics", "Prometheus metrics.",
        {200: Reply("The text format.", {"text/plain": _TEXT})},
    ),
    Operation(
        "get", routes.STATS, "get_stats", "The queue, the workers and what they hold, and what all runs came to.",
        {200: Reply("As of now.", {JSON: Stats})}, errors=[StorageUnavailable],
    ),
    Operation(
        "get", routes.EVENT_SCHEMA, "get_event_schema", "The events' payloads.",
        {200: Reply("A JSON Schema.", {"application/schema+json": _OBJECT})},
    ),
    Operation(
        "get", routes.OPENAPI, "get_openapi", "This document.",
        {200: Reply("OpenAPI 3.1.", {JSON: _OBJECT})},
    ),
    Operation(
        "get", routes.PROBLEM, "get_problem_type", "What the `type` of a problem means.",
        {200: Reply("The error.", {JSON: ProblemType})},
        [Parameter("code", "path", "a problem's code", _TEXT)],
    ),
    Operation("get", routes.PAGE, "get_page", "The page.", {200: Reply("HTML.", {"text/html": _TEXT})}),
)  # fmt: skip
