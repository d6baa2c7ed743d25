"""Request parameters: each one's description for the OpenAPI document, and the function that reads it."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.request import parse_http_list

from starlette.requests import Request

from stagebus.gateway.api.endpoint import ParameterSpec
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.api.schemas.create_run import METADATA_KEY_MAX_CHARS, METADATA_MAX, METADATA_VALUE_MAX_CHARS
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.tickets import ID_PATTERN as TICKET_ID_PATTERN
from stagebus.shared.domain import ids, run_id_pattern
from stagebus.shared.domain.cursor import CURSOR_PATTERN, EventId, parse_cursor
from stagebus.shared.domain.runs import STAGE_IDS, RunStatus
from stagebus.shared.domain.tenants import USER_MAX_CHARS, USER_PATTERN, is_user
from stagebus.shared.errors import BadIdempotencyKey, InvalidRequest, StageNotFound
from stagebus.shared.store.run_list import RunFilter

T = TypeVar("T")

CHUNKS: Final = ["lean", "full"]
FILTERS: Final = ("status", "model", "q", "user")
METADATA: Final = "metadata"
METADATA_PREFIX: Final = "metadata."
SEARCH_MAX_CHARS: Final = 200
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_STATUSES: Final = re.compile("({0})(,({0}))*".format("|".join(RunStatus)))
# One model's name, or the names of two stages in the format of a run's `model`.
_MODEL: Final = re.compile(r"[\x21-\x7e]{1,422}")

# A longer number of seconds is cut, since Python parses no number of thousands of digits.
_WAIT_DIGITS_MAX: Final = 9

_TEXT: Final = {"type": "string"}
_CURSOR: Final = {"type": "string", "pattern": CURSOR_PATTERN, "examples": ["5204-118", "0", "-1"]}
FEED_CURSOR: Final = {**_CURSOR, "examples": ["1735689600000-1", "0"]}


def _matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{pattern}$"}


# --- in the path -------------------------------------------------------------

RUN_ID: Final = ParameterSpec("run_id", "path", "The run's id, a ULID.", _matching(run_id_pattern.PATTERN))
STAGE_ID: Final = ParameterSpec(
    "stage_id",
    "path",
    "The stage's id. Later rounds have a number, such as `extraction.2` and `tools.2`.",
    {"type": "string", "enum": sorted(STAGE_IDS)},
)
CALL_ID: Final = ParameterSpec("call_id", "path", "The call's id, as in the run's `pending_approvals`.", _TEXT)
WAITING_CALL_ID: Final = ParameterSpec("call_id", "path", "The call's id, as in the run's `pending_calls`.", _TEXT)
TICKET_ID: Final = ParameterSpec("ticket_id", "path", "The ticket's `id`.", _matching(TICKET_ID_PATTERN))
PROBLEM_CODE: Final = ParameterSpec("code", "path", "The problem's `code`.", _TEXT)


def read_stage_id(request: Request) -> str:
    """Returns the stage id in the path.

    Raises:
        StageNotFound: no run has such a stage.
    """
    stage_id: str = request.path_params["stage_id"]
    if stage_id not in STAGE_IDS:
        raise StageNotFound(stage_id)
    return stage_id


def read_ticket_id(request: Request) -> str:
    """Returns the ticket id in the path.

    Raises:
        InvalidRequest: it is not a ticket id.
    """
    ticket_id: str = request.path_params["ticket_id"]
    if not re.fullmatch(TICKET_ID_PATTERN, ticket_id):
        raise _invalid("ticket_id", "must be the `id` of a ticket")
    return ticket_id


# --- event streams -----------------------------------------------------------

CHUNKS_FORMAT: Final = ParameterSpec(
    "chunks", "query", "`full` sends whole chat completion chunks instead of lean ones.", {"enum": CHUNKS}
)


def cursor_parameters(schema: dict[str, Any]) -> tuple[ParameterSpec, ParameterSpec]:
    """Describes the two parameters that have the cursor of a stream. Args: `schema`: of the cursor."""
    return (
        ParameterSpec(
            "Last-Event-ID", "header", "The id of the last event received. Takes precedence over `last_event_id`.", schema
        ),
        ParameterSpec(
            "last_event_id", "query",
            "The same as the header, for clients that cannot set headers, such as a reloaded page.", schema,
        ),
    )  # fmt: skip


STREAM_PARAMETERS: Final = (*cursor_parameters(_CURSOR), CHUNKS_FORMAT)


def read_cursor(request: Request) -> EventId:
    """Returns the id of the last event that the client has received.

    Raises:
        BadCursor: it is not an event id.
    """
    return newest_cursor(request, parse_cursor)


def newest_cursor(request: Request, parse: Callable[[str | None], T]) -> T:
    """Returns the cursor of the header, or that of the query, which has to be valid, too."""
    cursor = parse(request.query_params.get("last_event_id"))
    if seen := request.headers.get("last-event-id"):
        cursor = parse(seen)  # it is newer: a reconnecting EventSource repeats its original URL
    return cursor


def read_chunks(request: Request) -> str:
    """Returns the requested format of completion chunks: `lean`, as they are stored, or `full`.

    Raises:
        InvalidRequest: it is another word.
    """
    chunks = request.query_params.get("chunks", CHUNKS[0])
    if chunks not in CHUNKS:
        raise _invalid("chunks", f"must be {' or '.join(CHUNKS)}")
    return chunks


# Shorter than the 60 s after which proxies give up a request by default.
WAIT_MAX_S: Final = 30


def wait_parameter(description: str) -> ParameterSpec:
    """Describes the parameter that `read_wait` reads."""
    schema = {"type": "integer", "minimum": 0, "maximum": WAIT_MAX_S, "default": 0}
    return ParameterSpec("wait", "query", description, schema)


def read_wait(request: Request) -> int:
    """Returns for how many seconds the response may wait.

    Raises:
        InvalidRequest: it is not a number from 0 to `WAIT_MAX_S`.
    """
    return _read_number(request, "wait", 0, (0, WAIT_MAX_S))


PREFER: Final = ParameterSpec(
    "Prefer",
    "header",
    f"`wait=<seconds>` (RFC 7240) holds the response until the run has ended or waits for a person, or for so long, "
    f"but at most {WAIT_MAX_S} s. Needs the scope `runs:read`. The header `Preference-Applied` shows that it was "
    "honoured. Ignored with `Accept: text/event-stream`.",
    {"type": "string", "examples": ["wait=30"]},
)


def read_preferred_wait(request: Request) -> int:
    """Returns for how many seconds the client prefers to wait, at most `WAIT_MAX_S`; 0 if it did not say.

    A preference that is malformed or unknown is ignored, and of several the first counts.
    Spec: https://www.rfc-editor.org/rfc/rfc7240#section-4.3
    """
    for preference in parse_http_list(",".join(request.headers.getlist("prefer"))):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            digits = value.strip().strip('"')
            return min(int(digits[:_WAIT_DIGITS_MAX]), WAIT_MAX_S) if digits.isascii() and digits.isdecimal() else 0
    return 0


def wants_stream(request: Request) -> bool:
    """Returns whether an events URL answers with a stream. It does unless the client accepts only JSON."""
    return accepts(request, EVENT_STREAM) or not accepts(request, JSON)


def accepts(request: Request, media_type: str) -> bool:
    """Returns whether the `Accept` header names the media type; wildcards do not count."""
    ranges = request.headers.get("accept", "").split(",")
    return media_type in (one.partition(";")[0].strip().lower() for one in ranges)


# --- pages and lists ---------------------------------------------------------

BEFORE: Final = ParameterSpec("before", "query", "The `next` of the previous page.", RUN_ID.schema)
FILTER_PARAMETERS: Final = (
    ParameterSpec(
        "status", "query", "Only runs in one of these states, such as `queued,running`.", _matching(_STATUSES.pattern)
    ),
    ParameterSpec("model", "query", "Only runs that use this model in at least one stage.", _matching(_MODEL.pattern)),
    ParameterSpec(
        "q",
        "query",
        "Only runs whose id starts with this text, or whose `prompt` or a `metadata` value contains it. "
        "Case-insensitive.",
        {"type": "string", "minLength": 1, "maxLength": SEARCH_MAX_CHARS},
    ),
    ParameterSpec("user", "query", "Only runs of this user.", _matching(USER_PATTERN)),
    ParameterSpec(
        f"{METADATA_PREFIX}<key>",
        "query",
        "Only runs with this metadata value, such as `metadata.user=42`.",
        {"type": "string", "maxLength": METADATA_VALUE_MAX_CHARS},
    ),
)


def limit_parameter(description: str, default: int, limit_max: int) -> ParameterSpec:
    """Describes the parameter that `read_limit` reads."""
    schema = {"type": "integer", "minimum": 1, "maximum": limit_max, "default": default}
    return ParameterSpec("limit", "query", description, schema)


def read_limit(request: Request, default: int, limit_max: int) -> int:
    """Returns the maximum number of items in the response.

    Raises:
        InvalidRequest: it is not a number from 1 to `limit_max`.
    """
    return _read_number(request, "limit", default, (1, limit_max))


def _read_number(request: Request, name: str, default: int, limits: tuple[int, int]) -> int:
    low, high = limits
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise _invalid(name, f"must be a number from {low} to {high}")
    return int(text)


def read_before(request: Request) -> str | None:
    """Returns the id of the run after which a page of runs starts.

    Raises:
        InvalidRequest: it is not a run id.
    """
    before = request.query_params.get("before")
    if before is not None and not ids.is_run_id(before):
        raise _invalid("before", "must be a run id, such as the `next` of the previous page")
    return before


def read_run_filter(request: Request) -> RunFilter:
    """Returns the filter of a list of runs.

    Raises:
        InvalidRequest: at least one filter is invalid; the error names each of them.
    """
    params = request.query_params
    given = {name: params.getlist(name) for name in params if name in FILTERS or name.startswith(METADATA)}
    faults = [(name, fault) for name, values in given.items() if (fault := _find_fault(name, values))]
    metadata = {name.removeprefix(METADATA_PREFIX): values[0] for name, values in given.items() if name not in FILTERS}
    if len(metadata) > METADATA_MAX:
        faults.append((METADATA, f"at most {METADATA_MAX} keys"))
    if faults:
        raise invalid_fields([(name[: METADATA_KEY_MAX_CHARS + len(METADATA_PREFIX)], fault) for name, fault in faults])
    status, model, text, user = (params.get(name, "") for name in FILTERS)
    return RunFilter(frozenset(RunStatus(word) for word in status.split(",") if word), model, text, metadata, user)


def _find_fault(name: str, values: Sequence[str]) -> str:
    """Returns what is wrong with a filter; empty if it is valid."""
    value, key = values[0], name.removeprefix(METADATA_PREFIX)
    if len(values) > 1:
        return "given more than once"
    match name:
        case "status":
            is_valid = bool(_STATUSES.fullmatch(value))
            fault = f"must be a comma-separated list of {', '.join(RunStatus)}"
        case "model":
            is_valid, fault = bool(_MODEL.fullmatch(value)), "must be a model's name"
        case "q":
            is_valid, fault = 1 <= len(value) <= SEARCH_MAX_CHARS, f"must be 1 to {SEARCH_MAX_CHARS} characters long"
        case "user":
            is_valid, fault = (
                is_user(value),
                f"must be 1 to {USER_MAX_CHARS} characters long, without control characters",
            )
        case _ if not name.startswith(METADATA_PREFIX) or not 1 <= len(key) <= METADATA_KEY_MAX_CHARS:
            is_valid, fault = (
                False,
                f"must be {METADATA_PREFIX}<key> with a key of 1 to {METADATA_KEY_MAX_CHARS} characters",
            )
        case _:
            is_valid = len(value) <= METADATA_VALUE_MAX_CHARS
            fault = f"must be at most {METADATA_VALUE_MAX_CHARS} characters long"
    return "" if is_valid else fault


# --- creation ----------------------------------------------------------------

IDEMPOTENCY_KEY: Final = ParameterSpec(
    "Idempotency-Key",
    "header",
    "A second request with the same key and body returns the run of the first one.",
    _matching(_IDEMPOTENCY_KEY.pattern),
)


def read_idempotency_key(request: Request) -> str | None:
    """Returns the `Idempotency-Key` header, if any.

    Raises:
        BadIdempotencyKey: it is not 1 to 255 visible ASCII characters.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise BadIdempotencyKey
    return key


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", [{"field": field, "message": message}])
