"""View: Durable Streams, reading. A run, and each of its stages, is an append-only stream of JSON messages.

    GET  /durable/runs/{run id}                  ?offset=-1, or the last Stream-Next-Offset, or now
    GET  …?offset=…&live=long-poll               waits for the next message
    GET  …?offset=…&live=sse                     server-sent events
    HEAD …                                       the offset of the stream's end

A stream is closed once the run's terminal event stands. A clean end of a response after a `control` event tells the
client to come back, so a stream ends that way about once a minute, at a shutdown and where the log has a gap.
Spec: https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md
"""

import random
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stagebus.gateway.api.endpoint import Endpoint, ParameterSpec, ResponseSpec
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.held_request import closed_on_disconnect, running_hub
from stagebus.gateway.api.params import RUN_ID, STAGE_ID, read_stage_id
from stagebus.gateway.api.responses import EVENT_STREAM, JSON
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.response import EventStream
from stagebus.gateway.streaming.views import stored_view
from stagebus.gateway.views.durable_format import LONG_POLL, OFFSET_PATTERN, SSE, StreamPage
from stagebus.gateway.views.durable_reader import CLOSED, CURSOR, NEXT_OFFSET, UP_TO_DATE, Tail, answer_read
from stagebus.gateway.views.durable_view import JSON_FORMAT, DurableView, as_stream_page
from stagebus.gateway.views.view_stream import STREAM_ERRORS, X_RUN_ID, show_run
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import StageNotFound
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import Page
from stagebus.shared.position_errors import BadOffset, OffsetGone
from stagebus.shared.storage.redis_client import storage_errors

# Random between the two, so that clients that came together do not return together.
SSE_LIFE_S: Final = (55.0, 60.0)


class RunLog:
    """The log of a run, or of one stage, as a durable stream."""

    format = JSON_FORMAT

    def __init__(self, request: Request, run_id: str, stage_id: str | None) -> None:
        self._gateway = gateway_of(request)
        self._principal = principal_of(request)
        self._request = request
        self._run_id = run_id
        self._stage_id = stage_id
        self.identity = f"{run_id}/{stage_id or ''}"

    async def read_tail(self) -> Tail:
        """Returns the last event's id; for a stage, that of its own last event.

        Raises:
            RunNotFound: the caller has no such run.
        """
        redis, owner = self._gateway.redis, self._principal.owner
        with storage_errors():
            head = await log_reader.read_head(redis, self._run_id, owner)
            show_run(self._request, self._run_id)
            if self._stage_id is None or head.is_ended:
                return Tail(head.last_id, head.is_ended)
            ends = await log_reader.read_stage_ends(redis, self._run_id, [self._stage_id])
        return Tail(ends[0][1].event_id if ends else START, is_closed=False)

    async def read_page(self, after: EventId) -> StreamPage:
        """Returns the events after a position.

        Raises:
            RunNotFound: the caller has no such run.
            OffsetGone: the log has no event at the position.
        """
        return as_stream_page(await self._read_log(after, self._gateway.settings.page_max_events), after)

    async def _read_log(self, after: EventId, limit: int) -> Page:
        owner = self._principal.owner
        with storage_errors():
            page = await log_reader.read_page(
                self._gateway.redis, self._run_id, after, limit, stage_id=self._stage_id, owner=owner
            )
        show_run(self._request, self._run_id)
        if page.gap is not None:
            raise OffsetGone
        return page

    async def wait(self, after: EventId, timeout_s: float) -> None:
        """Waits for the next event.

        Raises:
            TooManyStreams, Draining: no request can wait here now.
        """
        hub = running_hub(self._request)
        stream = hub.new_stream(
            self._run_id, after, stored_view(self._stage_id), stage_id=self._stage_id,
            owner=self._principal.owner, is_strict=True,
        )  # fmt: skip
        async with closed_on_disconnect(self._request, stream):
            await hub.wait_for_news(stream, self._gateway.admit_stream(self._principal, stream.close), timeout_s)

    async def answer_sse(self, after: EventId, least_cursor: int) -> Response:
        """Returns the live stream.

        Raises:
            RunNotFound, OffsetGone: see `read_page`.
            TooManyStreams, Draining: no stream can be opened here now.
        """
        hub = running_hub(self._request)
        stream = hub.new_stream(
            self._run_id, after, DurableView(self._stage_id, after, least_cursor), stage_id=self._stage_id,
            owner=self._principal.owner, is_strict=True, life_s=random.uniform(*SSE_LIFE_S),  # noqa: S311 - jitter
        )  # fmt: skip
        # The first page is read before the response begins, so that the request can fail, and so that even a stream
        # that has to end before the hub has read anything says where to continue.
        subscription = stream.subscription
        page = await self._read_log(after, subscription.page_size(self._gateway.settings.page_max_events))
        subscription.add_page(page)
        stream.stages_begun = page.stage_ids
        hub.events_relayed += page.event_count
        if not subscription.is_ended:
            subscription.catch_up()  # the hub does not listen to the run yet
        admission = self._gateway.admit_stream(self._principal, stream.close)
        return await EventStream(hub, stream, admission, {"Content-Type": EVENT_STREAM}).open()


async def read_durable_run(request: Request) -> Response:
    """Read a run's events as a durable stream.

    A message is an event: `{"id", "event", "data"}`. A reader takes back what a `stage_restarted` makes void. The stream
    is closed when the run has ended. HEAD returns the offset of the stream's end.
    """
    return await _answer(request, None)


async def read_durable_stage(request: Request) -> Response:
    """Read one stage's events, and the event that ends the run, as a durable stream.

    Otherwise like the run's stream.
    """
    return await _answer(request, read_stage_id(request))


async def _answer(request: Request, stage_id: str | None) -> Response:
    log = RunLog(request, request.path_params["run_id"], stage_id)
    return await answer_read(request, log, gateway_of(request).settings.long_poll_s)


_PARAMETERS: Final = (
    ParameterSpec(
        "offset", "query",
        "`Stream-Next-Offset` of the last response; `-1` for the start, `now` for the current end.",
        {"type": "string", "pattern": f"^(-1|now|{OFFSET_PATTERN})$", "default": "-1"},
    ),
    ParameterSpec(
        "live", "query", "Wait for new messages: one response, or server-sent events. Needs `offset`.",
        {"enum": [LONG_POLL, SSE]},
    ),
    ParameterSpec("cursor", "query", "The last `Stream-Cursor` or `streamCursor`.", {"type": "string"}),
    ParameterSpec("If-None-Match", "header", "The `ETag` of a page that the client has.", {"type": "string"}),
)  # fmt: skip
_HEADERS: Final = {
    X_RUN_ID: "The run's id.",
    NEXT_OFFSET: "The offset to read from next.",
    UP_TO_DATE: "`true` if the response reaches the end of the stream so far.",
    CLOSED: "`true` if the run has ended and the response reaches the end of the stream.",
    CURSOR: "Long polls: the `cursor` of the next request.",
}
_RESPONSES: Final = {
    200: ResponseSpec(
        "The messages after the offset.",
        {JSON: {"type": "array", "items": {"type": "object", "required": ["id", "event", "data"]}}, EVENT_STREAM: {}},
        {**_HEADERS, "ETag": "Not with `offset=now`: changes with the page."},
    ),
    204: ResponseSpec("Long polls: no message came in time, or the stream is closed.", headers=_HEADERS),
    304: ResponseSpec("The client has this page.", headers=_HEADERS),
}

ENDPOINTS: Final = (
    Endpoint(
        "GET", "/durable/runs/{run_id}", read_durable_run, needs(Scope.RUNS_READ, takes_ticket=True),
        _RESPONSES, [RUN_ID, *_PARAMETERS], errors=[BadOffset, OffsetGone, *STREAM_ERRORS],
    ),
    Endpoint(
        "GET", "/durable/runs/{run_id}/stages/{stage_id}", read_durable_stage, needs(Scope.RUNS_READ, takes_ticket=True),
        _RESPONSES, [RUN_ID, STAGE_ID, *_PARAMETERS], errors=[BadOffset, OffsetGone, StageNotFound, *STREAM_ERRORS],
    ),
)  # fmt: skip
