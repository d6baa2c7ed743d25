"""A run as one JSON document: its record, its request and its whole log.

    {"format": "stagebus.run", "version": 1, "run": {…}, "request": {…}, "events": [{"id": …, "event": …, "data": {…}}, …]}

The log is read and sent page by page. The document ends with the event that was the last when its record was read, so
both agree. If the rest cannot be read, the response is cut, and neither HTTP nor JSON is complete.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, Literal

import orjson
from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stagebus.gateway.api.endpoint import Endpoint, ResponseSpec
from stagebus.gateway.api.event_endpoints import event_objects
from stagebus.gateway.api.guard import needs
from stagebus.gateway.api.held_request import running_hub
from stagebus.gateway.api.params import RUN_ID
from stagebus.gateway.api.responses import JSON
from stagebus.gateway.api.run_waiting import read_run, view_of
from stagebus.gateway.api.schemas.answers import Answer, RunView
from stagebus.gateway.api.schemas.event_page import StreamedEvent
from stagebus.gateway.auth.principal import principal_of
from stagebus.gateway.context import gateway_of
from stagebus.gateway.streaming.stream_writer import StreamTorn, stream_writer_of
from stagebus.shared.access_errors import TooManyStreams
from stagebus.shared.domain import tenants
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.errors import Draining, RunNotFound, StorageUnavailable
from stagebus.shared.store import thread_store

FORMAT: Final = "stagebus.run"
# Increased when a reader of the older version would misunderstand the new one. Further fields do not count.
VERSION: Final = 1


class RunExport(Answer):
    """A run with its whole log."""

    format: Literal["stagebus.run"] = Field(description="always `stagebus.run`")
    version: Literal[1] = Field(
        description="1; a reader refuses versions that it does not know and ignores unknown fields"
    )
    run: RunView = Field(description="the run as `GET /runs/{run_id}` returns it")
    request: dict[str, JsonValue] = Field(description="the request as it was accepted, with the defaults filled in")
    events: list[StreamedEvent] = Field(description="all events, in order, up to the run's `last_event_id`")


class _Export(StreamingResponse):
    """Sends the document: a server with a `StreamWriter` writes it, and cuts the connection quietly if it is torn."""

    def __init__(self, body: AsyncGenerator[bytes, None], run_id: str, stop: Callable[[], None]) -> None:
        headers = {"Content-Disposition": f'attachment; filename="stagebus-run-{run_id}.json"'}
        super().__init__(body, media_type=JSON, headers=headers)
        self._body = body
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, or its beginning if the server's writer sends the rest."""
        writer = stream_writer_of(scope)
        if writer is None or scope["method"] == "HEAD":
            async with aclosing(self._body):
                await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer.on_disconnect = self._stop
        writer.detach(self._body)


async def export_run(request: Request) -> Response:
    """Export a run as one JSON document: its record, its request and all its events.

    Event pages and texts can be rebuilt from it. It contains the whole request, such as the system prompt, which a ticket
    does not open, and nothing that only workers read. An export counts as an open stream. If it cannot be completed, the
    connection is cut.
    """
    run = await read_run(request, request.path_params["run_id"])
    record = {
        "format": FORMAT,
        "version": VERSION,
        "run": orjson.Fragment((await view_of(request, run)).model_dump_json()),
        "request": await _request_of(request, run.record),
    }
    stopped = asyncio.Event()
    body = _write(request, run.record, record, stopped)
    await anext(body)  # raises while the request can still fail
    return _Export(body, run.record.run_id, stopped.set)


async def _request_of(request: Request, run: RunRecord) -> dict[str, Any]:
    """Returns the run's request. Of a run in a thread, the thread has the messages."""
    if not run.thread_key:
        return run.request
    messages = await thread_store.read_own_messages(gateway_of(request).redis, run.thread_key, run.run_id)
    return {**run.request, "messages": list(messages)}


async def _write(
    request: Request, run: RunRecord, record: dict[str, Any], stopped: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """Yields nothing once it may begin, then the parts of the document.

    Args:
        stopped: set when the client has gone or its credential is revoked.

    Raises:
        TooManyStreams, Draining: it may not begin.
        StreamTorn: it cannot be completed.
    """
    hub = running_hub(request)
    async with gateway_of(request).admit_stream(principal_of(request), stopped.set) as is_admitted:
        hub.check_room(is_admitted=is_admitted)
        yield b""
        yield orjson.dumps(record)[:-1] + b',"events":['
        position, separator = EventId(0, 0), b""
        try:
            async for page in hub.pages(run.run_id, principal_of(request).owner):
                position, events = page.position, page.events
                if position > run.last_id:
                    events = [event for event in events if event.event_id <= run.last_id]
                if events:
                    yield separator + orjson.dumps(event_objects(events))[1:-1]
                    separator = b","
                if position >= run.last_id or stopped.is_set():
                    break
        except (RunNotFound, StorageUnavailable):
            raise StreamTorn from None
        if position < run.last_id:
            raise StreamTorn
        yield b"]}"


ENDPOINTS: Final = (
    Endpoint(
        "GET", "/runs/{run_id}/export", export_run, needs(tenants.Scope.RUNS_READ),
        {200: ResponseSpec.json(
            "The document.", RunExport, {"Content-Disposition": "A file name for browsers: `stagebus-run-<run_id>.json`."}
        )},
        [RUN_ID], errors=[RunNotFound, TooManyStreams, Draining, StorageUnavailable],
    ),
)  # fmt: skip
