"""The demo model: an HTTP server with the APIs of chat completions, Responses and Messages that needs no key.

    python -m stagebus.worker.demo.demo_model --host 127.0.0.1 --port 8001

`stagebus up` starts it if no provider is configured. The tests script it, so there is one fake model and no mock
of the SDK. `demo_script` parses the script, `demo_reply` decides on the answer, and a module for each API writes it. The same server has the demo weather.
Spec: https://platform.openai.com/docs/api-reference/chat
"""

import argparse
import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2s
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stagebus.worker.demo import demo_chat, demo_messages, demo_responses, demo_weather
from stagebus.worker.demo.demo_reply import DemoReply, reply_to, stage_of
from stagebus.worker.demo.demo_script import MODEL, BadScript, DemoScript, parse_script
from stagebus.worker.demo.demo_seal import has_broken_seal

COUNTED_REQUESTS_MAX: Final = 10_000
COUNTED_MODELS_MAX: Final = 1_000

_DONE: Final = b"[DONE]"
_GARBAGE: Final = b'data: {"choices": [{"delta"\n\n'
_CHAT_ERROR: Final = {"error": {"message": "the demo was told to fail", "type": "server_error"}}
_SHUTDOWN_S: Final = 1


class _ConnectionCut(Exception):
    """The script cuts the connection here."""


class _DemoApi(NamedTuple):
    """How the demo speaks one API.

    Attributes:
        to_chat: makes a chat completion request out of a request.
        events: the data of the stream's events.
        whole: the answer as one object.
        error: the event of a failure in the stream.
    """

    to_chat: Callable[[dict[str, Any]], dict[str, Any]]
    events: Callable[[Mapping[str, Any], DemoReply], Iterable[dict[str, Any]]]
    whole: Callable[[Mapping[str, Any], DemoReply], dict[str, Any]]
    error: Mapping[str, Any]


class DemoStats:
    """Counts requests, for `GET /demo/stats` and for scripts that fail a number of times."""

    def __init__(self) -> None:
        self.open_streams = 0
        self._requests = 0
        self._by_model: Counter[str] = Counter()
        self._by_request: OrderedDict[bytes, int] = OrderedDict()

    def count(self, request: Mapping[str, Any]) -> int:
        """Counts a request. Returns how often the same model had the same messages before."""
        self._requests += 1
        model = request["model"]
        if model in self._by_model or len(self._by_model) < COUNTED_MODELS_MAX:
            self._by_model[model] += 1
        key = blake2s(orjson.dumps([model, request["messages"]])).digest()
        before = self._by_request.pop(key, 0)
        self._by_request[key] = before + 1
        if len(self._by_request) > COUNTED_REQUESTS_MAX:
            self._by_request.popitem(last=False)
        return before

    def as_json(self) -> dict[str, Any]:
        """Returns the counts so far."""
        return {"requests": self._requests, "open_streams": self.open_streams, "requests_by_model": self._by_model}


class DemoStream(Response):
    """A streaming response that ends as soon as its client disconnects, even while nothing is sent.

    Starlette's own response notices a disconnect on some servers only when it sends. If the script
    cuts the connection, the call returns without the last message, and uvicorn closes the socket.
    """

    def __init__(self, body: AsyncIterator[bytes], stats: DemoStats, media_type: str) -> None:
        super().__init__(headers={"cache-control": "no-cache"}, media_type=media_type)
        del self.headers["content-length"]
        self._body = body
        self._stats = stats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Sends the body until it ends or the client disconnects."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        self._stats.open_streams += 1
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stats.open_streams -= 1
            sending.cancel()
            leaving.cancel()
            outcome, _ = await asyncio.gather(sending, leaving, return_exceptions=True)
        if isinstance(outcome, Exception) and not isinstance(outcome, _ConnectionCut):
            raise outcome

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._body:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _complete(request: Request, stats: DemoStats, api: _DemoApi) -> Response:
    """Answers a request, streamed or whole, or with an error in OpenAI's format."""
    try:
        body = api.to_chat(_parse(await request.body()))
        script = parse_script(body["model"])
    except BadScript as exc:
        return _error(400, str(exc))
    if script.reasoning and api.to_chat is not _chat_request and has_broken_seal(body):
        return _error(400, "calls came back without the reasoning before them")
    before = stats.count(body)
    is_over = script.fail_times is not None and before >= script.fail_times
    if is_over or not script.applies_to(stage_of(body)):
        script = script.without_faults()
    if script.status is not None:
        return _error(script.status, _failure(script.status, request), script.retry_after)
    reply = reply_to(body, script)
    if body.get("stream") is True:
        return DemoStream(_stream(api.events(body, reply), script, api), stats, "text/event-stream")
    return DemoStream(_whole(api.whole(body, reply), script), stats, "application/json")


def create_demo_app() -> Starlette:
    """Builds the app with the demo model and the demo weather."""
    stats = DemoStats()

    async def list_models(_: Request) -> Response:
        """GET /v1/models: the demo model."""
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "stagebus"}
        return JSONResponse({"object": "list", "data": [model]})

    async def show_stats(_: Request) -> Response:
        """GET /demo/stats: the requests so far and the number of open streams."""
        return JSONResponse(stats.as_json())

    return Starlette(
        routes=[
            *(Route(path, partial(_complete, stats=stats, api=api), methods=["POST"]) for path, api in _APIS.items()),
            Route("/v1/models", list_models),
            Route("/demo/stats", show_stats),
            *demo_weather.ROUTES,
        ]
    )


def _parse(body: bytes) -> dict[str, Any]:
    """Parses a request that names a model.

    Raises:
        BadScript: it does not.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadScript("the body is not JSON") from None
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        raise BadScript("the body must be an object that names a model")
    return request


def _chat_request(request: dict[str, Any]) -> dict[str, Any]:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BadScript("messages must be a list of at least one object")
    return request


_CHAT: Final = _DemoApi(_chat_request, demo_chat.stream_chunks, demo_chat.whole_completion, _CHAT_ERROR)
_RESPONSES: Final = _DemoApi(
    demo_responses.to_chat, demo_responses.stream_events, demo_responses.whole_response, demo_responses.ERROR
)
_MESSAGES: Final = _DemoApi(
    demo_messages.to_chat, demo_messages.stream_events, demo_messages.whole_message, demo_messages.ERROR
)

_APIS: Final = {"/v1/chat/completions": _CHAT, "/v1/responses": _RESPONSES, "/v1/messages": _MESSAGES}


def _failure(status: int, request: Request) -> str:
    """Returns the message of an error. Like some providers, the demo repeats the key that it refuses."""
    key = request.headers.get("authorization", "").partition(" ")[2]
    refused = f": incorrect API key provided: {key}" if status == HTTPStatus.UNAUTHORIZED and key else ""
    return f"the demo was told to fail{refused}"


def _error(status: int, message: str, retry_after_s: int | None = None) -> Response:
    by_status = {401: "authentication_error", 429: "rate_limit_error"}
    kind = by_status.get(status, "server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004 - HTTP's
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def _stream(chunks: Iterable[dict[str, Any]], script: DemoScript, api: _DemoApi) -> AsyncIterator[bytes]:
    """Yields the events of an answer at the script's pace, with its faults."""
    wait_ms = script.delay_ms if script.first_token_ms is None else script.first_token_ms
    for number, chunk in enumerate(chunks):
        if number == script.stall_after:
            await asyncio.Event().wait()
        if number == script.cut_after:
            raise _ConnectionCut
        await asyncio.sleep(wait_ms / 1000)
        wait_ms = script.delay_ms
        if number in (script.garbage_after, script.error_after):
            yield _GARBAGE if number == script.garbage_after else _frame(api.error)
            return
        yield _frame(chunk)
    if api is _CHAT and not script.no_done:
        yield b"data: %b\n\n" % _DONE


def _frame(event: Mapping[str, Any]) -> bytes:
    """Returns an event as bytes. Typed events have a name."""
    name = f"event: {event['type']}\n" if "type" in event else ""
    return b"%bdata: %b\n\n" % (name.encode(), orjson.dumps(event))


async def _whole(completion: Mapping[str, Any], script: DemoScript) -> AsyncIterator[bytes]:
    """Yields the answer in one part. Any fault affects all of it."""
    if script.stall_after is not None:
        await asyncio.Event().wait()
    if script.cut_after is not None:
        raise _ConnectionCut
    await asyncio.sleep((script.first_token_ms or 0) / 1000)
    if script.garbage_after is not None:
        yield _GARBAGE
        return
    yield orjson.dumps(completion)


def serve(host: str, port: int) -> None:
    """Serves until SIGINT or SIGTERM. Prints the address as the first line on stdout."""
    listening = socket.create_server((host, port), backlog=2048)
    bound_host, bound_port = listening.getsockname()[:2]
    print(f"listening on http://{bound_host}:{bound_port}", flush=True)  # noqa: T201 - the parent process reads this
    config = uvicorn.Config(
        create_demo_app(),
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    uvicorn.Server(config).run(sockets=[listening])


def main() -> None:
    """Starts the server from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stagebus.worker.demo.demo_model", description="The Stagebus demo model"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    arguments = parser.parse_args()
    serve(arguments.host, arguments.port)


if __name__ == "__main__":
    main()
