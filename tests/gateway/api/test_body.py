import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from stagebus.gateway.api.body import DEPTH_MAX, VALUES_MAX, parse_object, read_json
from stagebus.shared.errors import BadJson, BodyTooLarge, UnsupportedMediaType

LIMIT = 100

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_body_round_trip(value: dict[str, object]) -> None:
    body = orjson.dumps(value)

    assert parse_object(body) == orjson.loads(body)


@given(st.binary())
def test_junk_body_raises_bad_json_only(body: bytes) -> None:
    try:
        parsed = parse_object(body)
    except BadJson:
        return
    assert isinstance(parsed, dict)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b'{"a": 1, "\\u0061": 2}', "duplicate key 'a'"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * DEPTH_MAX + b"{}" + b"}" * DEPTH_MAX, "levels deep"),
        (orjson.dumps({"a": [0] * VALUES_MAX}), "more than"),
    ],
)
def test_invalid_body_is_rejected_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(BadJson, match=why):
        parse_object(body)


def test_body_with_maximum_depth_is_accepted() -> None:
    assert parse_object(b'{"a":' * (DEPTH_MAX - 1) + b"{}" + b"}" * (DEPTH_MAX - 1))


def request(chunks: list[bytes], **headers: str) -> Request:
    """A POST with a body in these chunks. Reading past the last one fails."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    incoming = iter(messages)

    async def receive() -> dict[str, object]:
        return next(incoming)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"])
async def test_body_is_read_from_chunks(media_type: str) -> None:
    assert await read_json(request([b'{"a"', b": 1}"], content_type=media_type), LIMIT) == {"a": 1}


async def test_body_without_a_media_type_is_json() -> None:
    assert await read_json(request([b"{}"]), LIMIT) == {}


async def test_body_size_limit_is_exact() -> None:
    body = b'{"a": "' + b"x" * (LIMIT - 9) + b'"}'

    assert await read_json(request([body]), LIMIT)
    with pytest.raises(BodyTooLarge):
        await read_json(request([body]), LIMIT - 1)


async def test_oversized_body_is_not_read_to_its_end() -> None:
    """Receiving the third chunk would fail."""
    with pytest.raises(BodyTooLarge):
        await read_json(request([b"x" * LIMIT, b"x", b""]), LIMIT)
    with pytest.raises(BodyTooLarge):
        await read_json(request([b""], content_length="101"), LIMIT)


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/json", "content_encoding": "gzip"},
    ],
)
async def test_other_content_types_and_encodings_are_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedMediaType):
        await read_json(request([b"{}"], **headers), LIMIT)
