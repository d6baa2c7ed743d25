"""Parameters out of a request's query and headers."""

import re
from typing import Final

from starlette.requests import Request

from shared import ids
from shared.errors import BadIdempotencyKey, InvalidRequest

IDEMPOTENCY_KEY_PATTERN: Final = r"[\x21-\x7e]{1,255}"
CHUNKS: Final = ["lean", "full"]
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
