"""Answers reads of a durable stream: pages, long polls and server-sent events, of any log and any content type.

    answer_read(request, log, long_poll_s)

The log is a run's here (`durable_streams.py`). Another one in memory is served to the protocol's conformance tests.
Spec: https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md
"""

from typing import Final, NamedTuple, Protocol

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.views.durable_format import (
    LONG_POLL,
    SSE,
    ReadQuery,
    StreamFormat,
    StreamPage,
    cursor_from,
    encode_offset,
    parse_query,
)
from stagebus.shared.domain.cursor import EventId

NEXT_OFFSET: Final = "Stream-Next-Offset"
UP_TO_DATE: Final = "Stream-Up-To-Date"
CLOSED: Final = "Stream-Closed"
CURSOR: Final = "Stream-Cursor"
_TRUE: Final = "true"

NO_STORE: Final = "no-store"
# A browser may keep a page, and asks each time whether it is still the same: a key may be revoked, a run deleted.
REVALIDATED: Final = "private, no-cache"


class Tail(NamedTuple):
    """The end of a stream."""

    position: EventId
    is_closed: bool


class DurableLog(Protocol):
    """A stream that can be read. Every method raises `OffsetGone` if the log does not have `after`.

    Attributes:
        format: the format of the stream's content type.
        identity: what no other stream has, also not a later one of the same name; for ETags.
    """

    format: StreamFormat
    identity: str

    async def read_tail(self) -> Tail:
        """Returns the end of the stream."""
        ...

    async def read_page(self, after: EventId) -> StreamPage:
        """Returns the messages after a position, as many as fit into a page."""
        ...

    async def wait(self, after: EventId, timeout_s: float) -> None:
        """Returns when there is a message after the tail, when the stream is closed, or when the time is over."""
        ...

    async def answer_sse(self, after: EventId, least_cursor: int) -> Response:
        """Returns the response that sends the messages after a position and then new ones, as `SseEncoder` gives them."""
        ...


async def answer_read(request: Request, log: DurableLog, long_poll_s: float) -> Response:
    """Answers a GET or HEAD request.

    Args:
        long_poll_s: the most seconds for which a long poll waits.

    Raises:
        BadOffset: the query is invalid.
        OffsetGone: the log has no such offset.
    """
    if request.method == "HEAD":
        return _head_response(log, await log.read_tail())
    query = parse_query(request.query_params)
    tail = await log.read_tail() if query.after is None else None
    after = tail.position if tail is not None else query.after
    assert after is not None
    if query.live == SSE:
        return await log.answer_sse(after, query.cursor)
    if tail is not None and not query.live:
        page = StreamPage([], after, after, is_tail=True, is_closed=tail.is_closed)
    else:
        page = await log.read_page(after)
    if query.live == LONG_POLL and _has_no_news(page) and not page.is_closed:
        await log.wait(after, long_poll_s)
        page = await log.read_page(after)
    return _page_response(request, log, query, page)


def _has_no_news(page: StreamPage) -> bool:
    return page.is_tail and not page.messages


def _head_response(log: DurableLog, tail: Tail) -> Response:
    headers = {**_position_headers(tail.position, is_closed=tail.is_closed), "Cache-Control": NO_STORE}
    response = Response(headers={**headers, "Content-Type": log.format.content_type})
    del response.headers["Content-Length"]  # that of a GET is not known
    return response


def _page_response(request: Request, log: DurableLog, query: ReadQuery, page: StreamPage) -> Response:
    headers = _position_headers(page.next, is_closed=page.is_closed)
    if page.is_tail:
        headers[UP_TO_DATE] = _TRUE
    if query.live and not page.is_closed:
        headers[CURSOR] = str(cursor_from(query.cursor))
    if query.live and _has_no_news(page):
        return Response(status_code=204, headers={**headers, "Cache-Control": NO_STORE})
    if query.after is None:
        headers["Cache-Control"] = NO_STORE
    else:
        headers |= {"Cache-Control": REVALIDATED, "ETag": _etag(log, page)}
        if _is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
    return Response(log.format.encode_body(page.messages), headers={**headers, "Content-Type": log.format.content_type})


def _position_headers(position: EventId, *, is_closed: bool) -> dict[str, str]:
    return {NEXT_OFFSET: encode_offset(position), **({CLOSED: _TRUE} if is_closed else {})}


def _etag(log: DurableLog, page: StreamPage) -> str:
    """Returns the tag of a page. A page that was the last one differs from the same page when there are more."""
    end = "closed" if page.is_closed else "tail" if page.is_tail else "more"
    return f'"{log.identity}:{encode_offset(page.after)}:{encode_offset(page.next)}:{end}"'


def _is_known(request: Request, etag: str) -> bool:
    """Returns whether the client has the page already. Spec: https://www.rfc-editor.org/rfc/rfc9110#name-if-none-match"""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in known or "*" in known
