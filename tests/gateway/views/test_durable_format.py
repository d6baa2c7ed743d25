"""The wire format of Durable Streams: offsets, cursors, and text in server-sent events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from stagebus.gateway.views import durable_format
from stagebus.gateway.views.durable_format import (
    CURSOR_EPOCH_MS,
    SseEncoder,
    StreamFormat,
    StreamPage,
    encode_offset,
    parse_offset,
    parse_query,
)
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.position_errors import BadOffset

parts = st.integers(min_value=0, max_value=10**12 - 1)
ids = st.builds(EventId, parts, parts)


@given(ids, ids)
def test_offsets_are_read_back_and_sort_as_their_ids(one: EventId, other: EventId) -> None:
    assert parse_offset(encode_offset(one)) == one
    assert (encode_offset(one) < encode_offset(other)) == (one < other)


@given(st.text("0123456789-\u0660 \n", min_size=24, max_size=26))
def test_text_of_another_form_is_no_offset(text: str) -> None:
    try:
        offset = parse_offset(text)
    except BadOffset:
        return
    assert encode_offset(offset) == text


def test_cursor_is_the_interval_or_more_than_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_format, "wall_ms", lambda: CURSOR_EPOCH_MS + 70 * 20_000 + 19_999)

    def cursor(given: str) -> int:
        query = parse_query(QueryParams({"offset": "now", "live": "sse", "cursor": given}))
        return SseEncoder(StreamFormat("text/plain"), START, query.cursor).cursor

    assert [cursor(other) for other in ("", "69", "abc", "-1", "9" * 16)] == [70] * 5
    for old in ("70", "71", "1000"):
        assert int(old) < cursor(old) <= int(old) + 180


@pytest.mark.parametrize(
    ("content_type", "messages", "data"),
    [
        ("text/plain", [b" a\n", b"b"], b"data:  a\ndata:b\n"),
        ("Text/HTML; charset=utf-8", [b"a\r\n\rb"], b"data:a\ndata:\ndata:b\n"),
        ("application/octet-stream", [b"\x00", b"\n"], b"data:AAo=\n"),
        ("application/json; charset=utf-8", [b"1", b"[2]"], b"data:[1,[2]]\n"),
    ],
)
def test_messages_become_one_data_event_before_their_control_event(
    content_type: str, messages: list[bytes], data: bytes
) -> None:
    encoder = SseEncoder(StreamFormat(content_type), START, 7 * 10**9)
    frames = encoder.encode(StreamPage(messages, START, EventId(1, 2), is_tail=False, is_closed=False))

    control = b'event: control\ndata:{"streamNextOffset":"000000000001-000000000002","streamCursor":"7000000000"}\n\n'
    assert frames == b"event: data\n" + data + b"\n" + control


def test_control_event_comes_once_for_an_end_that_stays() -> None:
    encoder = SseEncoder(StreamFormat("application/json"), START, 0)
    empty = StreamPage([], START, START, is_tail=True, is_closed=False)

    assert b'"upToDate":true' in encoder.encode(empty)
    assert encoder.encode(empty) == b""
    assert b'"streamClosed":true' in encoder.encode(empty._replace(is_closed=True))
