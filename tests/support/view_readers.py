"""Clients of the views that reconnect and judge what they get, as `StrictClient` does for the native stream.

Each keeps what its protocol tells a client to keep, so `text` is what stands at the end: the model stages' texts.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx

from stagebus.gateway.streaming.model_pieces import pieces_of
from tests.support.scripted_log import frames_of
from tests.support.strict_client import RETRY_S, StrictClient, Violation

Request = tuple[str, str, dict[str, Any]]
# A gateway that shuts down, and one that comes back.
PASSING = {429, 502, 503}


class ViewReader(ABC):
    """Follows one run through a view.

    Attributes:
        end: `done`, `cancel` or `error` once the run has ended.
        connections: the number of streams that were opened.
    """

    def __init__(self, urls: Sequence[str], run_id: str) -> None:
        self.urls = urls
        self.run_id = run_id
        self.end = ""
        self.connections = 0
        self.is_left = False  # the protocol ends this connection, and the client comes back

    async def follow(self, timeout_s: float = 60, cut_after: Callable[[], int | None] = lambda: None) -> "ViewReader":
        """Reads until the run's end; each connection is cut after so many messages, None for never.

        Raises:
            Violation: the stream ended before the run, or has a message that it may not have.
        """
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=httpx.Timeout(10, read=30)) as http:
            while not self.end:
                with suppress(httpx.TransportError, OSError):
                    await self._connect(http, cut_after())
                await asyncio.sleep(RETRY_S * random.random())
        return self

    async def _connect(self, http: httpx.AsyncClient, messages_max: int | None) -> None:
        method, path, options = self.request()
        async with http.stream(method, random.choice(self.urls) + path, **options) as response:
            if response.status_code in PASSING:
                return
            if response.status_code != 200:
                raise Violation(f"{self}: {response.status_code}: {await response.aread()!r}")
            self.connections += 1
            self.is_left, count = False, 0
            async for message in _messages(response):
                self.take(message)
                count += 1
                if self.end or count == messages_max:
                    return
            if not self.is_left:
                raise Violation(f"{self}: a clean end after {count} messages, before the run's")

    def __str__(self) -> str:
        return f"{type(self).__name__} of {self.run_id}"

    @abstractmethod
    def request(self) -> Request:
        """Returns the next request: method, path and options of httpx."""

    @abstractmethod
    def take(self, message: dict[str, Any]) -> None:
        """Takes the next message."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The text that stands, with an empty line between two model stages."""


async def _messages(response: httpx.Response) -> AsyncIterator[Any]:
    rest = ""
    async for text in response.aiter_text():
        *blocks, rest = (rest + text).split("\n\n")
        for _, data in frames_of("\n\n".join([*blocks, ""])):
            if data != "[DONE]":
                yield data


class ResponsesReader(ViewReader):
    """OpenAI's Responses: resumes after the last sequence number."""

    last = -1
    response: dict[str, Any] | None = None

    def request(self) -> Request:
        after = f"&starting_after={self.last}" if self.last >= 0 else ""
        return "GET", f"/v1/responses/resp_{self.run_id}?stream=true{after}", {}

    def take(self, message: dict[str, Any]) -> None:
        if message["sequence_number"] != self.last + 1:
            raise Violation(f"{self}: {message['sequence_number']} after {self.last}")
        self.last += 1
        ends = {"response.completed": "done", "response.failed": "error", "response.incomplete": "cancel"}
        if message["type"] in ends:
            self.end, self.response = ends[message["type"]], message["response"]

    @property
    def text(self) -> str:
        output = self.response["output"] if self.response else []
        messages = [item for item in output if item["type"] == "message"]
        return _joined(part["text"] for item in messages for part in item["content"])


class ChatReader(ViewReader):
    """Chat completions: repeats its request under its Idempotency-Key, and gets the answer from the start."""

    restarts = 0
    _text = ""

    def __init__(self, urls: Sequence[str], run_id: str, body: dict[str, Any], key: str) -> None:
        super().__init__(urls, run_id)
        self._options = {"json": {**body, "stream": True}, "headers": {"Idempotency-Key": key}}

    def request(self) -> Request:
        self._text = ""
        return "POST", "/v1/chat/completions", self._options

    def take(self, message: dict[str, Any]) -> None:
        match message:
            case {"error": {"code": "stage_restarted"}}:
                self.restarts += 1
                self.is_left = True
            case {"error": error}:
                self.end = "cancel" if error["code"] == "run_cancelled" else "error"
            case {"id": message_id, "choices": [choice]}:
                if message_id != f"chatcmpl-{self.run_id}":
                    raise Violation(f"{self}: the key leads to {message_id}")
                self._text += choice["delta"].get("content") or ""
                self.end = "done" if choice["finish_reason"] else ""

    @property
    def text(self) -> str:
        return self._text


class UiMessageReader(ViewReader):
    """The AI SDK's UI message stream: resumes with the number of chunks that it has."""

    def __init__(self, urls: Sequence[str], run_id: str) -> None:
        super().__init__(urls, run_id)
        self.chunks = 0
        self._steps: list[str] = []

    def request(self) -> Request:
        return "GET", f"/api/chat/{self.run_id}/stream?startIndex={self.chunks}", {}

    def take(self, message: dict[str, Any]) -> None:
        self.chunks += 1
        match message:
            case {"type": "start-step"}:
                self._steps.append("")
            case {"type": "reset-step"}:
                self._steps[-1] = ""
            case {"type": "text-delta"}:
                self._steps[-1] += message["delta"]
            case {"type": "finish"}:
                self.end = {"error": "error", "other": "cancel"}.get(message["finishReason"], "done")

    @property
    def text(self) -> str:
        return _joined(self._steps)


class AguiReader(ViewReader):
    """AG-UI: attaches again, and a snapshot replaces what it has."""

    def __init__(self, urls: Sequence[str], run_id: str) -> None:
        super().__init__(urls, run_id)
        self._texts: dict[str, str] = {}

    def request(self) -> Request:
        body = {"threadId": "t", "runId": self.run_id, "messages": [], "tools": [], "context": [], "forwardedProps": {}}
        self._texts = {}
        return "POST", "/agui", {"json": {**body, "state": {}}}

    def take(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "MESSAGES_SNAPSHOT"}:
                said = [one for one in message["messages"] if one["role"] == "assistant"]
                self._texts = {one["id"]: one.get("content") or "" for one in said}
            case {"type": "TEXT_MESSAGE_CONTENT"}:
                self._texts[message["messageId"]] = self._texts.get(message["messageId"], "") + message["delta"]
            case {"type": "RUN_ERROR"}:
                self.end = "error"
            case {"type": "RUN_FINISHED"}:
                self.end = "cancel" if message["outcome"]["type"] == "cancelled" else "done"

    @property
    def text(self) -> str:
        return _joined(self._texts.values())


class DurableReader(ViewReader):
    """Durable Streams: resumes at the last offset, and drops what a restart makes void."""

    def __init__(self, urls: Sequence[str], run_id: str) -> None:
        super().__init__(urls, run_id)
        self._offset = "-1"
        self._last = 0
        self._unconfirmed: list[dict[str, Any]] = []
        self._texts: dict[str, str] = {}

    def request(self) -> Request:
        self._unconfirmed = []
        return "GET", f"/durable/runs/{self.run_id}?offset={self._offset}&live=sse", {}

    def take(self, message: Any) -> None:
        self.is_left = isinstance(message, dict)  # a control event, after which the stream may end
        if not self.is_left:
            self._unconfirmed += message
            return
        self._offset = message["streamNextOffset"]
        for event in self._unconfirmed:
            self._take_event(event["event"], event["id"], event["data"])
        self._unconfirmed = []

    def _take_event(self, name: str, event_id: str, data: dict[str, Any]) -> None:
        sequence = int(event_id.rpartition("-")[2])
        if sequence != self._last + 1:
            raise Violation(f"{self}: {sequence} after {self._last}")
        self._last = sequence
        match name:
            case "tool_completion_chunk":
                text = "".join(piece.text for piece in pieces_of(data["tool_results"]) if not piece.is_reasoning)
                self._texts[data["stage_id"]] = self._texts.get(data["stage_id"], "") + text
            case "stage_restarted":
                self._texts.pop(data["stage_id"], None)
            case "done" | "cancel" | "error":
                self.end = name

    @property
    def text(self) -> str:
        return _joined(self._texts.values())


def expected_text(native: StrictClient) -> str:
    """Returns the texts of all complete model stages, as these readers give them."""
    completed = [event for event in native.events if event.event == "stage_completed"]
    return _joined(event.data["result"].get("text") or "" for event in completed)


def _joined(texts: Any) -> str:
    return "\n\n".join(text for text in texts if text)
