"""Stored events with whole chat completion chunks, for clients that expect a provider's own (`?chunks=full`).

The log keeps chunks lean: what all chunks of a stage repeat stands once, in its `stage_started`.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from stagebus.gateway.streaming.subscription import View
from stagebus.shared.domain.events import StageStarted, ToolCompletionChunk
from stagebus.shared.log import sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page, StoredEvent

_STARTED = StageStarted.event
_CHUNK = ToolCompletionChunk.event


class FullChunksView:
    """Another view's events, each chunk made whole."""

    def __init__(self, inner: View, begun: Iterable[StoredEvent]) -> None:
        """`begun` are the `stage_started` events of stages that began before the client's cursor."""
        self._inner = inner
        self._templates: dict[str, dict[str, Any]] = {}
        for event in begun:
            self._learn(orjson.loads(event.data))

    def of_page(self, page: Page) -> bytes:
        """The page with whole chunks."""
        return self._fill(self._inner.of_page(page))

    def of_batch(self, batch: LiveBatch) -> bytes:
        """The batch with whole chunks."""
        return self._fill(self._inner.of_batch(batch))

    def of_events(self, events: Iterable[StoredEvent]) -> list[StoredEvent]:
        """The events with whole chunks."""
        return [event._replace(data=self._filled(event.event.decode(), event.data)) for event in events]

    def _fill(self, frames: bytes) -> bytes:
        return b"".join(
            sse.encode(frame.id.encode(), frame.event.encode(), self._filled(frame.event, frame.data.encode()))
            for frame in sse.decode(frames)
        )

    def _filled(self, name: str, data: bytes) -> bytes:
        if name == _STARTED:
            self._learn(orjson.loads(data))
        return orjson.dumps(self._whole(orjson.loads(data))) if name == _CHUNK else data

    def _learn(self, started: dict[str, Any]) -> None:
        if started.get("chunk"):
            self._templates[started["stage_id"]] = started["chunk"]

    def _whole(self, event: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._templates.get(event["stage_id"], {}), **event["tool_results"]}
        choices = chunk.setdefault("choices", [])
        if isinstance(choices, list):  # else whatever the provider sent
            chunk["choices"] = [_whole_choice(choice) for choice in choices]
        return {"stage_id": event["stage_id"], "tool_results": chunk}


def _whole_choice(choice: Any) -> Any:
    return {"logprobs": None, "finish_reason": None, **choice} if isinstance(choice, dict) else choice
