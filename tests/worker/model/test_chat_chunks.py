from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.worker.model.chat_chunks import BadChunk, ChunkDecoder, EventTooLong

STREAM = (
    "\ufeff: hello\n\n"
    'data: {"n": 1}\n\n'
    "event: message\n"
    'data:{"text": "Grüße 😊",\ndata: "n": 2}\n\n'
    "id: 7\nretry: 10\n\n"
    "data:\n\n"
    'data: {"n": 3}\n\n'
    "data: [DONE]\n\n"
    'data: {"n": 4}\n\n'
)
CHUNKS = [{"n": 1}, {"text": "Grüße 😊", "n": 2}, {"n": 3}]


def decode(*pieces: bytes) -> list:
    decoder = ChunkDecoder()
    chunks = [chunk for piece in pieces for chunk in decoder.feed(piece)]
    return chunks + decoder.finish()


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_stream_split_at_every_byte_gives_the_same_chunks(line_end):
    raw = STREAM.replace("\n", line_end).encode()

    for cut in range(len(raw) + 1):
        assert decode(raw[:cut], raw[cut:]) == CHUNKS
    assert decode(*(raw[i : i + 1] for i in range(len(raw)))) == CHUNKS


@given(cuts=st.lists(st.integers(0, len(STREAM.encode()))), line_end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_stream_split_anywhere_gives_the_same_chunks(cuts, line_end):
    raw = STREAM.replace("\n", line_end).encode()
    bounds = [0, *sorted(cuts), len(raw)]

    assert decode(*(raw[a:b] for a, b in pairwise(bounds))) == CHUNKS


def test_done_ends_the_chunks():
    decoder = ChunkDecoder()

    assert decoder.feed(b'data: {"a": 1}\n\ndata:  [DONE] \n\ndata: {"a": 2}\n\n') == [{"a": 1}]
    assert decoder.is_done
    assert decoder.feed(b"data: garbage\n\n") == []


def test_chunk_is_returned_at_its_blank_line_for_any_line_ending():
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        assert ChunkDecoder().feed(b'data: {"a": 1}' + end) == [{"a": 1}]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_last_event_may_lack_its_blank_line(end):
    assert decode(b'data: {"a": 1}\n\ndata: {"a": 2}' + end) == [{"a": 1}, {"a": 2}]
    assert decode(b'data: {"a": 1}\n\ndata: {"a": ' + end) == [{"a": 1}]


def test_events_without_blank_lines_are_separated():
    decoder = ChunkDecoder()

    assert decoder.feed(b'data: {"a": 1}\ndata: {"a": 2}\ndata: [DONE]\n\n') == [{"a": 1}, {"a": 2}]
    assert decoder.is_done


@pytest.mark.parametrize(
    "data", [b"oops", b'{"a":', b'{"a": 1} oops', b"[1]", b'"text"', b"1", b'{"a": "\xff"}', b"[" * 100_000]
)
def test_invalid_chunk_is_an_error(data):
    with pytest.raises(BadChunk):
        ChunkDecoder().feed(b"data: " + data + b"\n\n")


def test_error_event_without_an_error_field_becomes_one():
    raw = b'event: error\ndata: {"message": "overloaded"}\n\nevent: error\ndata: {"error": "x"}\n\ndata: {"a": 1}\n\n'

    assert decode(raw) == [{"error": {"message": "overloaded"}}, {"error": "x"}, {"a": 1}]


@pytest.mark.parametrize(
    ("data", "error"), [(b"overloaded", "overloaded"), (b'"overloaded"', "overloaded"), (b'["a"]', "a"), (b"7", 7)]
)
def test_error_event_may_contain_other_json_than_an_object(data, error):
    assert decode(b"event: error\ndata: " + data + b"\n\n") == [{"error": error}]


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"a": 1}{"a": 2}\n\n',
        b'data: {"a": 1} \t{"a": 2} \n\n',
        b'data: [{"a": 1}, {"a": 2}]\n\n',
        b'data: data: {"a": 1}\n\ndata: data:{"a": 2}\n\ndata: data: [DONE]\n\n',
        b'data: {"a": 1}\n\ndata: null\n\ndata: \n\ndata: {"a": 2}\n\n',
        b'event: ping\ndata: ping\n\ndata: {"a": 1}\n\nevent: keep-alive\ndata: 7:\n\ndata: {"a": 2}\n\n',
        b': OPENROUTER PROCESSING\n\ndata: {"a": 1}\n\n: OPENROUTER PROCESSING\n\ndata: {"a": 2}\n\n',
        b'{"a": 1}\n{"a": 2}\n',
        b'  data: {"a": 1}\n\n  data:{"a": 2}\n\n',
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n[{"a": 2}]',
        b'{"a": 1}\n\ndata: {"a": 2}\n\ndata: [DONE]\n\n{"a": 3}\n',
        b'{\n  "a": 1\n}\n{\n\n  "a": 2\n}',
        b'data: {"a": 1}\r\rdata: {"a": 2}\r\rdata: [DONE]\r\rdata: [DONE]\r\r',
        b'id: 1\nevent: chunk\ndata: {"a": 1}\n\nid: 2\nevent: chunk\ndata: {"a": 2}\n\ndata: [DONE] \r\n\r\n',
    ],
)
def test_noise_around_chunks_is_ignored(raw):
    for cut in range(len(raw)):
        assert decode(raw[:cut], raw[cut:]) == [{"a": 1}, {"a": 2}]


def test_json_that_only_python_parses_is_made_valid():
    assert decode(b'data: {"logprob": NaN, "text": "\\ud83d!", "n": -Infinity}\n\n') == [
        {"logprob": None, "text": "\ufffd!", "n": None}
    ]


def say(text: str) -> bytes:
    return b'data: {"a": [{"text": "%b", "x": "\\ude00"}], "b": "same"}\n\n' % text.encode()


def test_surrogate_pair_split_over_two_chunks_is_joined():
    raw = say("Hi \\ud83d") + say("") + say("\\ude00 and \\ud83d") + say("\\ude00")

    for cut in range(len(raw)):
        texts = [chunk["a"][0]["text"] for chunk in decode(raw[:cut], raw[cut:])]
        assert texts == ["Hi ", "", "😀 and ", "😀"]


def test_lone_surrogate_is_dropped():
    raw = b'data: {"a": "Hi \\ud83d"}\n\ndata: {"a": " there"}\n\ndata: {"a": "\\ude00"}\n\n'

    assert [chunk["a"] for chunk in decode(raw)] == ["Hi ", " there", "😀"]
    assert decode(b'data: {"b": "\\ude00", "a": "\\ud83d"}\n\n') == [{"b": "\ufffd", "a": ""}]


def test_event_size_is_limited():
    long = b'data: {"a": "' + b"x" * 200 + b'"}\n\n'

    with pytest.raises(EventTooLong):
        ChunkDecoder(event_max_bytes=100).feed(long)
    with pytest.raises(EventTooLong):
        ChunkDecoder(event_max_bytes=100).feed(long.rstrip())
    with pytest.raises(EventTooLong):
        ChunkDecoder(event_max_bytes=100).feed(b"data:\n" * 50)
    with pytest.raises(EventTooLong):
        ChunkDecoder(event_max_bytes=100).feed(b"{\n" * 51)
    decoder = ChunkDecoder(event_max_bytes=100)
    for _ in range(100):
        assert decoder.feed(b'data: {"a": "' + b"x" * 50 + b'"}\n\n')
