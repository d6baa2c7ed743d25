import pytest
from starlette.requests import Request

from stagebus.gateway.api.params import accepts, read_before, read_idempotency_key, read_limit, read_run_filter
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import BadIdempotencyKey, InvalidRequest
from stagebus.shared.store.run_list import EVERY_RUN, RunFilter


def request(query: str = "", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "query_string": query.encode(), "headers": raw})


@pytest.mark.parametrize(("query", "limit"), [("", 20), ("limit=1", 1), ("limit=100", 100), ("limit=007", 7)])
def test_limit_is_read(query: str, limit: int) -> None:
    assert read_limit(request(query), 20, 100) == limit


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "x", "", "1e1", "%D9%A1", "%C2%B2", "9" * 5000, "1%00"])
def test_invalid_limit_is_rejected(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_limit(request(f"limit={text}"), 20, 100)

    assert [error["field"] for error in caught.value.errors] == ["limit"]


def test_before_must_be_a_run_id() -> None:
    assert read_before(request()) is None
    assert read_before(request("before=01J9ZK3V7Q8E5W2R4T6Y8V0P1A")) == "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"
    for junk in ("", "x", "01j9zk3v7q8e5w2r4t6y8v0p1a", "01J9ZK3V7Q8E5W2R4T6Y8V0P1A%0A", "*"):
        with pytest.raises(InvalidRequest):
            read_before(request(f"before={junk}"))


def test_run_filter_is_read() -> None:
    asked = request("status=queued,running&model=a%2Fb&q=%C3%A4%20b&metadata.user=42&metadata.a.b=&other=1")

    assert read_run_filter(asked) == RunFilter(
        frozenset({RunStatus.QUEUED, RunStatus.RUNNING}), "a/b", "ä b", {"user": "42", "a.b": ""}
    )
    assert read_run_filter(request()) == EVERY_RUN


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=", "status"), ("status=done", "status"), ("status=queued,", "status"), ("status=queued%0A", "status"),
        ("status=queued&status=running", "status"), ("model=", "model"), ("model=a%20b", "model"),
        ("model=a%0A", "model"), ("model=" + "x" * 423, "model"), ("q=", "q"), ("q=" + "x" * 201, "q"),
        ("q=a&q=b", "q"), ("metadata=x", "metadata"), ("metadata.=x", "metadata."), ("metadatax=1", "metadatax"),
        ("metadata." + "k" * 65 + "=1", "metadata." + "k" * 64), ("metadata.k=" + "x" * 513, "metadata.k"),
        ("&".join(f"metadata.k{n}=1" for n in range(17)), "metadata"),
    ],
)  # fmt: skip
def test_invalid_filter_is_named(query: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_run_filter(request(query))

    assert [error["field"] for error in caught.value.errors] == [field]


def test_idempotency_key_must_be_visible_ascii() -> None:
    assert read_idempotency_key(request()) is None
    assert read_idempotency_key(request(idempotency_key="a")) == "a"
    assert read_idempotency_key(request(idempotency_key='"{x}*"')) == '"{x}*"'
    assert read_idempotency_key(request(idempotency_key="x" * 255))
    for junk in ("", "x" * 256, "two words", "tab\t", "é"):
        with pytest.raises(BadIdempotencyKey):
            read_idempotency_key(request(idempotency_key=junk))


def test_accept_header_is_matched_by_media_type() -> None:
    assert accepts(request(accept="application/json, Text/Event-Stream;q=0.5"), "text/event-stream")
    assert not accepts(request(accept="*/*"), "text/event-stream")
    assert not accepts(request(accept="text/event-streams"), "text/event-stream")
    assert not accepts(request(), "text/event-stream")
