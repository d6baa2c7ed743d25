"""FullChunksView makes of lean chunks what the provider sent."""

from typing import Any

import orjson
import pytest

from stagebus.gateway.streaming.views import RUN_EVENTS, FullChunksView, StageEventsView
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import (
    ChunkTemplate,
    Done,
    Event,
    StageCompleted,
    StageRestarted,
    StageStarted,
    ToolCompletionChunk,
)
from stagebus.shared.log import live_batch, sse
from stagebus.shared.log.live_batch import LiveBatch
from stagebus.shared.log.log_page import Page, StageSlice, StoredEvent
from stagebus.shared.log.sse import Frame
from stagebus.worker.stages.model_stage import strip_chunk

TEMPLATE = ChunkTemplate(id="chatcmpl-1", created=1735689600, model="m")
OTHER = ChunkTemplate(id="chatcmpl-2", created=1735689601, model="n")


def begin(stage_id: str = "extraction", template: ChunkTemplate | None = TEMPLATE) -> StageStarted:
    return StageStarted(stage_id=stage_id, attempt=1, chunk=template)


def chunk(tool_results: dict[str, Any], stage_id: str = "extraction") -> ToolCompletionChunk:
    return ToolCompletionChunk(stage_id=stage_id, tool_results=tool_results)


def says(text: str, stage_id: str = "extraction") -> ToolCompletionChunk:
    return chunk({"choices": [{"index": 0, "delta": {"content": text}}]}, stage_id)


def stored(*events: Event, first: int = 2) -> list[StoredEvent]:
    return [
        StoredEvent(b"7-%d" % number, event.stage_id, event.event.encode(), event.data())
        for number, event in enumerate(events, first)
    ]


def page_of(*events: Event) -> Page:
    parts = [StageSlice(e.stage_id, [[e.id, [b"event", e.event, b"data", e.data]]]) for e in stored(*events)]
    return Page(parts, EventId(7, len(events) + 1), is_last=True, is_ended=False)


def batch_of(*events: Event) -> LiveBatch:
    entries = stored(*events)
    frames = [sse.encode(entry.id, entry.event, entry.data) for entry in entries]
    return live_batch.decode(
        live_batch.encode(EventId(7, 1), EventId(7, len(events) + 1), [e.stage_id for e in events], frames)
    )


def chunks(frames: bytes) -> list[dict[str, Any]]:
    return [
        orjson.loads(frame.data)["tool_results"]
        for frame in sse.decode(frames)
        if frame.event == "tool_completion_chunk"
    ]


PROVIDER_S = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1735689600,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "Grüße 😊\u2028"},
            "logprobs": None,
            "finish_reason": None,
        }
    ],
}


def test_full_view_completes_a_lean_chunk() -> None:
    view = FullChunksView(RUN_EVENTS, [])

    assert chunks(view.encode_page(page_of(begin(), chunk(strip_chunk(PROVIDER_S))))) == [PROVIDER_S]
    assert chunks(view.encode_batch(batch_of(chunk(strip_chunk(PROVIDER_S))))) == [PROVIDER_S]


def test_full_view_completes_the_last_chunks() -> None:
    ends = {**PROVIDER_S, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]}
    counts = {**PROVIDER_S, "choices": [], "usage": {"total_tokens": 3}}

    whole = chunks(
        FullChunksView(RUN_EVENTS, []).encode_page(
            page_of(begin(), chunk(strip_chunk(ends)), chunk(strip_chunk(counts)))
        )
    )
    assert whole == [ends, counts]


def test_full_view_has_a_template_per_stage() -> None:
    events = (begin(), begin("synthesis", OTHER), says("a"), says("b", "synthesis"), says("c"))

    whole = chunks(FullChunksView(RUN_EVENTS, []).encode_page(page_of(*events)))
    assert [made["id"] for made in whole] == ["chatcmpl-1", "chatcmpl-2", "chatcmpl-1"]


def test_full_view_knows_stages_that_began_before_the_cursor() -> None:
    """A reconnect in the middle of an answer."""
    view = FullChunksView(StageEventsView("extraction"), stored(begin(), begin("tools", None)))

    assert chunks(view.encode_batch(batch_of(says("a"))))[0]["id"] == "chatcmpl-1"


def test_full_view_keeps_the_template_after_a_restart() -> None:
    events = (begin(), says("a"), StageRestarted(stage_id="extraction", attempt=9, discard_from=3), says("b"))

    assert [made["id"] for made in chunks(FullChunksView(RUN_EVENTS, []).encode_page(page_of(*events)))] == [
        "chatcmpl-1"
    ] * 2


def test_full_view_prefers_the_chunk_s_own_fields() -> None:
    """A provider may change a field within an answer, such as a router that names the model it chose."""
    view = FullChunksView(RUN_EVENTS, stored(begin()))

    assert chunks(view.encode_batch(batch_of(chunk({"model": "m-2", "choices": []}))))[0]["model"] == "m-2"


def test_full_view_changes_no_other_event() -> None:
    events = (
        begin(),
        StageCompleted(stage_id="extraction", result={"text": "\u2028", "n": 1.0}),
        Done(),
    )
    view = FullChunksView(RUN_EVENTS, [])

    assert view.encode_page(page_of(*events)) == RUN_EVENTS.encode_page(page_of(*events))
    assert view.encode_batch(batch_of(*events)) == RUN_EVENTS.encode_batch(batch_of(*events))


def test_full_view_keeps_ids_and_order() -> None:
    events = (begin(), says("a"), says("b", "synthesis"), says("c"), Done())

    frames = list(sse.decode(FullChunksView(StageEventsView("extraction"), []).encode_batch(batch_of(*events))))
    assert [frame.id for frame in frames] == ["7-2", "7-3", "7-5"]
    assert all(isinstance(frame, Frame) for frame in frames)


def test_full_view_of_an_empty_page_is_empty() -> None:
    assert FullChunksView(RUN_EVENTS, []).encode_page(page_of()) == b""


def test_full_view_passes_on_a_chunk_without_template() -> None:
    whole = chunks(FullChunksView(RUN_EVENTS, []).encode_page(page_of(begin(template=None), says("a"))))

    assert whole == [{"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}]}]


@pytest.mark.parametrize("choices", ["x", [None], ["x"], [[]], {"a": 1}, 7, {}])
def test_full_view_passes_on_malformed_choices(choices: Any) -> None:
    """A provider may send anything, which must not break this stream or others on its channel."""
    whole = chunks(FullChunksView(RUN_EVENTS, stored(begin())).encode_batch(batch_of(chunk({"choices": choices}))))

    assert whole[0]["choices"] == choices
    assert whole[0]["id"] == "chatcmpl-1"
