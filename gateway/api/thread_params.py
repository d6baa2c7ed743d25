"""Parameters of the endpoints of threads."""

import re
from typing import Final

from starlette.requests import Request

from stagebus.gateway.api.endpoint import ParameterSpec
from stagebus.gateway.api.params import (
    CHUNKS_FORMAT,
    METADATA_PREFIX,
    RUN_ID,
    SEARCH_MAX_CHARS,
    cursor_parameters,
    newest_cursor,
    read_run_filter,
)
from stagebus.gateway.api.schemas.create_run import METADATA_VALUE_MAX_CHARS
from stagebus.gateway.api.schemas.validation import invalid_fields
from stagebus.gateway.auth.principal import principal_of
from stagebus.shared.domain import ids
from stagebus.shared.domain.tenants import USER_PATTERN
from stagebus.shared.domain.thread_cursor import THREAD_CURSOR_PATTERN, ThreadCursor, parse_thread_cursor
from stagebus.shared.domain.threads import THREAD_ID_MAX_CHARS, ThreadIdentity
from stagebus.shared.storage import keys
from stagebus.shared.store.thread_list import CURSOR_PATTERN, ThreadFilter
from stagebus.shared.thread_errors import ThreadNotFound

IDLE: Final = "idle"
_CURSOR: Final = {
    "type": "string",
    "pattern": THREAD_CURSOR_PATTERN,
    "examples": ["01J9ZK3V7Q8E5W2R4T6Y8V0P1A.5204-118", "0"],
}

THREAD_ID: Final = ParameterSpec(
    "thread_id",
    "path",
    "The thread's id, percent-encoded as one segment of the path.",
    {"type": "string", "minLength": 1, "maxLength": THREAD_ID_MAX_CHARS},
)
THREAD_USER: Final = ParameterSpec(
    "user",
    "query",
    "The person within the tenant whose thread it is, for callers that may see all users' threads; by default the caller.",
    {"type": "string", "pattern": f"^{USER_PATTERN}$"},
)
THREAD_STREAM_PARAMETERS: Final = (
    *cursor_parameters(_CURSOR),
    CHUNKS_FORMAT,
    ParameterSpec(
        "until", "query", "`idle` ends the stream once no run is active and none waits. A page then says so in `is_ended`.",
        {"enum": [IDLE]},
    ),
)  # fmt: skip
BEFORE_THREAD: Final = ParameterSpec(
    "before", "query", "The `next` of the previous page.", {"type": "string", "pattern": f"^{CURSOR_PATTERN}$"}
)
THREAD_FILTERS: Final = (
    ParameterSpec(
        "user",
        "query",
        "Only threads of this person within the tenant.",
        {"type": "string", "pattern": f"^{USER_PATTERN}$"},
    ),
    ParameterSpec(
        "q",
        "query",
        "Only threads whose id, title or a `metadata` value contains this text. Case-insensitive.",
        {"type": "string", "minLength": 1, "maxLength": SEARCH_MAX_CHARS},
    ),
    ParameterSpec(
        f"{METADATA_PREFIX}<key>",
        "query",
        "Only threads with this metadata value, such as `metadata.project=42`.",
        {"type": "string", "maxLength": METADATA_VALUE_MAX_CHARS},
    ),
)
BRANCH_PARAMETERS: Final = (
    ParameterSpec(
        "branch", "query", "The last turn of the branch whose messages are wanted, by its run.", RUN_ID.schema
    ),
    ParameterSpec(
        "before", "query", "The `before` of the page of messages that comes after the wanted one.", RUN_ID.schema
    ),
)


def read_thread_identity(request: Request) -> ThreadIdentity:
    """Returns the identity of the thread in the path: the caller's, or that of `user` if the caller may see all users'.

    Raises:
        InvalidRequest: `user` is not a user's name.
        ThreadNotFound: the caller's ticket is for another thread, or `user` is somebody whose threads it may not see.
    """
    principal = principal_of(request)
    user = read_run_filter(request).user or principal.user
    identity = ThreadIdentity(principal.tenant, user, request.path_params["thread_id"])
    if principal.owner.user not in (None, user):
        # Not the caller's own thread of this id instead: the request may be its deletion.
        raise ThreadNotFound(identity.thread_id)
    if principal.ticket_for and principal.ticket_for != keys.thread(identity):
        raise ThreadNotFound(identity.thread_id)
    return identity


def read_thread_cursor(request: Request) -> ThreadCursor:
    """Returns the id of the last event that the client has received.

    Raises:
        BadThreadCursor: it is not the id of an event of a thread.
    """
    return newest_cursor(request, parse_thread_cursor)


def read_until_idle(request: Request) -> bool:
    """Returns whether the stream ends when the thread is idle.

    Raises:
        InvalidRequest: `until` has another value.
    """
    until = request.query_params.get("until")
    if until not in (None, IDLE):
        raise invalid_fields([("until", f"must be {IDLE}")])
    return until is not None


def read_before_thread(request: Request) -> str | None:
    """Returns the cursor after which a page of threads starts.

    Raises:
        InvalidRequest: it is not the `next` of a page.
    """
    before = request.query_params.get("before")
    if before is not None and not re.fullmatch(CURSOR_PATTERN, before):
        raise invalid_fields([("before", "must be the `next` of the previous page")])
    return before


def read_thread_filter(request: Request) -> ThreadFilter:
    """Returns the filter of a list of threads.

    Raises:
        InvalidRequest: at least one filter is invalid.
    """
    same_as_for_runs = read_run_filter(request)
    user = principal_of(request).owner.user
    if user is None:
        user = same_as_for_runs.user or None
    return ThreadFilter(user=user, text=same_as_for_runs.text, metadata=same_as_for_runs.metadata)


def read_branch(request: Request) -> tuple[str | None, str | None]:
    """Returns the last turn of the requested branch, and the turn before which its page ends.

    Raises:
        InvalidRequest: one of them is not a run id.
    """
    branch, before = request.query_params.get("branch"), request.query_params.get("before")
    given = {"branch": branch, "before": before}
    faults = [
        (name, "must be a run id") for name, text in given.items() if text is not None and not ids.is_run_id(text)
    ]
    if faults:
        raise invalid_fields(faults)
    return branch, before
