"""Parameters out of a request's query and headers."""

import re
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request

from stagebus.gateway.api.schemas.create_run import METADATA_KEY_MAX_CHARS, METADATA_MAX, METADATA_VALUE_MAX_CHARS
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.tickets import ID_PATTERN as TICKET_ID
from stagebus.shared.domain import ids
from stagebus.shared.domain.cursor import EventId, parse_cursor
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import BadIdempotencyKey, InvalidRequest
from stagebus.shared.store.run_list import RunFilter

IDEMPOTENCY_KEY_PATTERN: Final = r"[\x21-\x7e]{1,255}"
CHUNKS: Final = ["lean", "full"]
FILTERS: Final = ("status", "model", "q")
METADATA: Final = "metadata"
METADATA_PREFIX: Final = "metadata."
SEARCH_MAX_CHARS: Final = 200
STATUSES_PATTERN: Final = "({0})(,({0}))*".format("|".join(RunStatus))
# A name, or those of two stages as a run's `model` has them.
MODEL_PATTERN: Final = r"[\x21-\x7e]{1,422}"
_STATUSES: Final = re.compile(STATUSES_PATTERN)
_MODEL: Final = re.compile(MODEL_PATTERN)
_IDEMPOTENCY_KEY: Final = re.compile(IDEMPOTENCY_KEY_PATTERN)


def read_limit(request: Request, default: int, limit_max: int) -> int:
    """How many at the most.

    Raises:
        InvalidRequest: no number from 1 to `limit_max`.
    """
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(limit_max)) and 1 <= int(text) <= limit_max):
        raise _invalid("limit", f"a number from 1 to {limit_max}")
    return int(text)


def read_cursor(request: Request) -> EventId:
    """Where the client stands in the run's log.

    Raises:
        BadCursor: what it says is no event id.
    """
    cursor = parse_cursor(request.query_params.get("last_event_id"))
    if seen := request.headers.get("last-event-id"):
        cursor = parse_cursor(seen)  # it wins: an EventSource repeats the URL that it was made with
    return cursor


def read_chunks(request: Request) -> str:
    """Whether chunks are asked for as they are stored, or whole.

    Raises:
        InvalidRequest: another word.
    """
    chunks = request.query_params.get("chunks", CHUNKS[0])
    if chunks not in CHUNKS:
        raise _invalid("chunks", " or ".join(CHUNKS))
    return chunks


def read_before(request: Request) -> str | None:
    """The run that a page of runs comes after.

    Raises:
        InvalidRequest: no run id.
    """
    before = request.query_params.get("before")
    if before is not None and not ids.is_run_id(before):
        raise _invalid("before", "a run's id, such as the `next` of the page before")
    return before


def read_run_filter(request: Request) -> RunFilter:
    """Which runs of a list are wanted.

    Raises:
        InvalidRequest: a filter cannot be one; each such is named.
    """
    params = request.query_params
    asked = {name: params.getlist(name) for name in params if name in FILTERS or name.startswith(METADATA)}
    wrong = [(name, fault) for name, values in asked.items() if (fault := _find_fault(name, values))]
    metadata = {name.removeprefix(METADATA_PREFIX): values[0] for name, values in asked.items() if name not in FILTERS}
    if len(metadata) > METADATA_MAX:
        wrong.append((METADATA, f"at most {METADATA_MAX} of them"))
    if wrong:
        raise invalid_fields([(name[: METADATA_KEY_MAX_CHARS + len(METADATA_PREFIX)], fault) for name, fault in wrong])
    status, model, text = (params.get(name, "") for name in FILTERS)
    return RunFilter(frozenset(RunStatus(word) for word in status.split(",") if word), model, text, metadata)


def _find_fault(name: str, values: Sequence[str]) -> str:
    """What is wrong with a filter, in words; empty where nothing is."""
    value, key = values[0], name.removeprefix(METADATA_PREFIX)
    if len(values) > 1:
        return "stands twice"
    match name:
        case "status":
            is_fit, words = (
                bool(_STATUSES.fullmatch(value)),
                f"one or more of {', '.join(RunStatus)}, with commas between them",
            )
        case "model":
            is_fit, words = bool(_MODEL.fullmatch(value)), "a model's name"
        case "q":
            is_fit, words = 1 <= len(value) <= SEARCH_MAX_CHARS, f"1 to {SEARCH_MAX_CHARS} characters"
        case _ if not name.startswith(METADATA_PREFIX) or not 1 <= len(key) <= METADATA_KEY_MAX_CHARS:
            is_fit, words = False, f"{METADATA_PREFIX}<key>, the key of 1 to {METADATA_KEY_MAX_CHARS} characters"
        case _:
            is_fit = len(value) <= METADATA_VALUE_MAX_CHARS
            words = f"at most {METADATA_VALUE_MAX_CHARS} characters"
    return "" if is_fit else words


def read_ticket_id(request: Request) -> str:
    """The ticket that the path names.

    Raises:
        InvalidRequest: no ticket is called so.
    """
    ticket_id: str = request.path_params["ticket_id"]
    if not re.fullmatch(TICKET_ID, ticket_id):
        raise _invalid("ticket_id", "the `id` that came with the ticket")
    return ticket_id


def read_idempotency_key(request: Request) -> str | None:
    """The name that a client gave to its creation.

    Raises:
        BadIdempotencyKey: not 1 to 255 visible ASCII characters.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise BadIdempotencyKey
    return key


def wants_stream(request: Request) -> bool:
    """Whether the client of an events URL gets a stream; those who take JSON alone get pages."""
    return accepts(request, "text/event-stream") or not accepts(request, "application/json")


def accepts(request: Request, media_type: str) -> bool:
    """Whether the client names the media type among those that it takes."""
    ranges = request.headers.get("accept", "").split(",")
    return media_type in (one.partition(";")[0].strip().lower() for one in ranges)


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", [{"field": field, "message": message}])
