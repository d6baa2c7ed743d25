"""The live channel's message: what one side encodes the other decodes, and whose frames are whose."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RUN_STAGE, STAGE_IDS
from stagebus.shared.log import live_batch, sse
from stagebus.shared.log.live_batch import LiveBatch

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=10)
positions = st.builds(EventId, st.integers(0, 10**12), st.integers(0, 10**6))
# One event: its stage and its payload.
events = st.tuples(st.sampled_from(sorted(STAGE_IDS)), TEXTS)
batches = st.lists(events, min_size=1, max_size=8)


def frames_of(batch: list[tuple[str, str]]) -> list[bytes]:
    return [
        sse.encode(b"7-%d" % number, b"tool_completion_chunk", text.encode())
        for number, (_, text) in enumerate(batch, 1)
    ]


def message_of(batch: list[tuple[str, str]], before: EventId, last: EventId, *, is_end: bool) -> bytes:
    return live_batch.encode(before, last, [stage_id for stage_id, _ in batch], frames_of(batch), is_end=is_end)


@given(batches, positions, positions, st.booleans())
def test_live_batch_decodes_what_was_encoded(
    batch: list[tuple[str, str]], before: EventId, last: EventId, is_end: bool
) -> None:
    decoded = live_batch.decode(message_of(batch, before, last, is_end=is_end))

    stages = " ".join(
        f"{stage_id}:{len(list(group))}" for stage_id, group in groupby(stage_id for stage_id, _ in batch)
    )
    assert decoded == LiveBatch(before, last, is_end, stages.encode(), b"".join(frames_of(batch)))


@given(batches)
def test_stage_gets_its_own_frames_in_order(batch: list[tuple[str, str]]) -> None:
    decoded = live_batch.decode(message_of(batch, EventId(7, 0), EventId(7, len(batch)), is_end=False))

    for wanted in STAGE_IDS:
        own = [frame for frame, (stage_id, _) in zip(frames_of(batch), batch, strict=True) if stage_id == wanted]
        assert decoded.frames_of(wanted) == b"".join(own)


@given(batches)
def test_every_stage_gets_the_terminal_event_once_and_last(batch: list[tuple[str, str]]) -> None:
    batch = [*batch, (RUN_STAGE, "terminal")]
    frames = frames_of(batch)
    decoded = live_batch.decode(message_of(batch, EventId(7, 0), EventId(7, len(batch)), is_end=True))

    for wanted in STAGE_IDS - {RUN_STAGE}:
        own = [frame for frame, (stage_id, _) in zip(frames, batch, strict=True) if stage_id == wanted]
        assert decoded.frames_of(wanted) == b"".join([*own, frames[-1]])
    assert decoded.frames_of(RUN_STAGE).count(frames[-1]) == 1


def test_live_message_is_readable_text() -> None:
    frames = [sse.encode(b"5204-118", b"x", b"{}"), sse.encode(b"5204-119", b"y", b"{}")]

    message = live_batch.encode(EventId(0, 117), EventId(5204, 119), ["synthesis", "run"], frames, is_end=True)
    assert message.splitlines()[0] == b"0-117 5204-119 end synthesis:1 run:1"
    assert message.endswith(b"id: 5204-119\nevent: y\ndata: {}\n\n")


@pytest.mark.parametrize("message", [b"", b"\n", b"\xff\xfe", b"1", b"1-2 3-4", b"1 2 - run:1\n", b"1-2 3-x - run:1\n"])
def test_garbage_is_a_value_error(message: bytes) -> None:
    """The hub handles only this error."""
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever made it
        live_batch.decode(message)
