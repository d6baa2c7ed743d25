"""Views: the wire formats in which a client can read a run's events.

    RunEventsView    all events of a run, as stored
    StageEventsView  the events of one stage and the run's terminal event, as stored
    FullChunksView   one of these, with complete chat completion chunks (`?chunks=full`)
    PauseView        no events; the stream ends when the run asks somebody outside, or ends itself

Views in other protocols are in `folded_view.py`. A view is a pure function of stored events. The stored chunks are lean: the fields that all chunks of a stage have
in common are stored once, in the stage's `stage_started` event.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final

import orjson

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import (
    ApprovalRequired,
    CallDeferred,
    Gap,
    InputRequired,
    StageStarted,
    ToolCompletionChunk,
)
from stagebus.shared.log import sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import LogGap, Page, StoredEvent

_STAGE_STARTED: Final = StageStarted.event
_CHUNK: Final = ToolCompletionChunk.event
_ASKS: Final = tuple(event.event.encode() for event in (ApprovalRequired, InputRequired, CallDeferred))
# Data is one line of JSON, so a frame's second line cannot be part of it.
_ASK_LINES: Final = tuple(b"\nevent: %b\n" % name for name in _ASKS)


class EventView(ABC):
    """Encodes stored events as server-sent event frames.

    Attributes:
        is_ended: the frames that were encoded last end the client's stream, although the run may continue.
    """

    __slots__ = ()

    is_ended = False

    @abstractmethod
    def encode_page(self, page: Page) -> bytes:
        """Returns the frames of a log page."""

    @abstractmethod
    def encode_batch(self, batch: LiveBatch) -> bytes | None:
        """Returns the frames of a live batch; None if the client has to read it from the log."""

    def encode_gap(self, gap: LogGap) -> bytes:
        """Returns the frame that tells the client of a gap.

        Raises:
            StreamTorn: the protocol has no such frame.
        """
        requested, earliest, latest = (str(event_id) for event_id in gap)
        frame = Gap(requested=requested, earliest=earliest, latest=latest)
        return sse.encode_without_id(frame.event, frame.model_dump_json())

    def resume_at(self, position: EventId, page: Page) -> EventId:  # noqa: ARG002
        """Prepares for the page after the position; returns another position if it must be read from there."""
        return position


class RunEventsView(EventView):
    """The run's merged stream: the events of all stages, ordered by sequence."""

    def encode_page(self, page: Page) -> bytes:
        """Returns all events of the page."""
        return page.frames()

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the frames of the batch; all subscribers share these bytes."""
        return batch.frames


class StageEventsView(EventView):
    """One stage's stream, which ends with the run's terminal event."""

    def __init__(self, stage_id: str) -> None:
        self._stage_id = stage_id

    def encode_page(self, page: Page) -> bytes:
        """Returns the page, which was read for this stage only."""
        return page.frames()

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the batch's frames of this stage."""
        return batch.frames_of(self._stage_id)


class FullChunksView(EventView):
    """Another view's events, with complete chunks as a provider sends them."""

    def __init__(self, inner: EventView, stages_started: Iterable[StoredEvent]) -> None:
        """`stages_started` are the `stage_started` events of the stages that began before the client's cursor."""
        self._inner = inner
        self._template_by_stage: dict[str, dict[str, Any]] = {}
        for event in stages_started:
            self._add_template(orjson.loads(event.data))

    def encode_page(self, page: Page) -> bytes:
        """Returns the page with complete chunks."""
        return self._complete_frames(self._inner.encode_page(page))

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Returns the batch with complete chunks."""
        return self._complete_frames(self._inner.encode_batch(batch) or b"")

    def encode_gap(self, gap: LogGap) -> bytes:
        """Returns the frame of the inner view."""
        return self._inner.encode_gap(gap)

    def complete_events(self, events: Iterable[StoredEvent]) -> list[StoredEvent]:
        """Returns the events with complete chunks."""
        return [event._replace(data=self._complete_data(event.event.decode(), event.data)) for event in events]

    def _complete_frames(self, frames: bytes) -> bytes:
        return b"".join(
            sse.encode(frame.id.encode(), frame.event.encode(), self._complete_data(frame.event, frame.data.encode()))
            for frame in sse.decode(frames)
        )

    def _complete_data(self, event_name: str, data: bytes) -> bytes:
        if event_name == _STAGE_STARTED:
            self._add_template(orjson.loads(data))
        return orjson.dumps(self._complete_chunk(orjson.loads(data))) if event_name == _CHUNK else data

    def _add_template(self, stage_started: dict[str, Any]) -> None:
        if stage_started.get("chunk"):
            self._template_by_stage[stage_started["stage_id"]] = stage_started["chunk"]

    def _complete_chunk(self, event: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._template_by_stage.get(event["stage_id"], {}), **event["tool_results"]}
        choices = chunk.setdefault("choices", [])
        if isinstance(choices, list):  # otherwise pass on what the provider sent
            chunk["choices"] = [_complete_choice(choice) for choice in choices]
        return {"stage_id": event["stage_id"], "tool_results": chunk}


class PauseView(EventView):
    """No events: a stream that ends when the run asks somebody outside or ends. It serves one stream."""

    def encode_page(self, page: Page) -> bytes:
        """Looks for a request to a person; returns no bytes."""
        self.is_ended = any(fields[1] in _ASKS for _, entries in page.slices for _, fields in entries)
        return b""

    def encode_batch(self, batch: LiveBatch) -> bytes:
        """Looks for a request to a person; returns no bytes."""
        self.is_ended = any(line in batch.frames for line in _ASK_LINES)
        return b""

    def encode_gap(self, gap: LogGap) -> bytes:  # noqa: ARG002
        """Returns no bytes. The run is read again at the end, whatever the log has lost."""
        return b""


def _complete_choice(choice: Any) -> Any:
    return {"logprobs": None, "finish_reason": None, **choice} if isinstance(choice, dict) else choice


def stored_view(stage_id: str | None) -> EventView:
    """Returns the view of the events as stored: of one stage, or of the whole run if `stage_id` is None."""
    return RUN_EVENTS if stage_id is None else StageEventsView(stage_id)


RUN_EVENTS: Final = RunEventsView()
