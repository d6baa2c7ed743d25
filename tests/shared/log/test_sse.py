"""Frames: the bytes that clients get, and their inverse."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sse_starlette.event import ServerSentEvent

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import EVENT_BY_NAME
from stagebus.shared.log import sse
from stagebus.shared.log.sse import Frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ids = st.builds(EventId, st.integers(0, 10**12), st.integers(1, 10**6)).map(str)
frames = st.builds(
    Frame, ids, st.sampled_from(sorted(EVENT_BY_NAME)), JSON.map(lambda value: orjson.dumps({"v": value}).decode())
)


def encoded(frame: Frame) -> bytes:
    return sse.encode(frame.id.encode(), frame.event.encode(), frame.data.encode())


def by_the_library(frame: Frame) -> bytes:
    return ServerSentEvent(frame.data, event=frame.event, id=frame.id, sep="\n").encode()


@given(frames)
def test_frame_equals_the_one_of_sse_starlette(frame: Frame) -> None:
    assert encoded(frame) == by_the_library(frame)


@pytest.mark.parametrize(
    "text",
    ["\u2028 and \u2029", "\x00", "\x85", "\x0b\x0c\x1c", "\r\n", "\n\n", "😊 Grüße", "data: x\n\nid: 1", ": ping", ""],
)
def test_no_character_breaks_a_frame(text: str) -> None:
    frame = Frame("5204-118", "tool_completion_chunk", orjson.dumps({"text": text}).decode())

    assert encoded(frame) == by_the_library(frame)
    assert encoded(frame).count(b"\n") == 4, "id, event and data each end in one LF, and a blank line follows"
    assert list(sse.decode(encoded(frame))) == [frame]


@given(st.lists(frames, max_size=5), st.lists(st.integers(0, 5), max_size=3))
def test_frames_are_decoded_without_pings_and_retries(sent: list[Frame], pings_at: list[int]) -> None:
    parts = [encoded(frame) for frame in sent]
    for at in pings_at:
        parts.insert(at, sse.PING)

    assert list(sse.decode(sse.encode_retry(1000) + b"".join(parts))) == sent


def test_frames_that_are_no_events() -> None:
    assert sse.PING == b": ping\n\n"
    assert sse.encode_retry(1500) == b"retry: 1500\n\n"
    assert sse.encode_retry(0) == b"retry: 0\n\n"


def test_frame_without_an_id_does_not_move_the_cursor() -> None:
    gap = sse.encode_without_id("gap", '{"earliest":"0-1"}')

    assert gap == b'event: gap\ndata: {"earliest":"0-1"}\n\n'
    assert list(sse.decode(gap)) == [Frame("", "gap", '{"earliest":"0-1"}')]
