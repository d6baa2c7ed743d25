"""Spans without and with a tracer provider; what they contain, and how they are connected."""

import asyncio

import pytest
from opentelemetry import trace as otel

from stagebus.shared.errors import ModelUnavailable
from stagebus.shared.observability import spans
from stagebus.shared.observability.trace import Trace, bound, current
from tests.support.recorded_spans import RecordedSpans

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> RecordedSpans:
    return RecordedSpans(monkeypatch)


def test_span_without_a_provider_leaves_the_trace_alone() -> None:
    with bound(Trace("r", PARENT)), spans.span("work") as span:
        assert not span.is_recorded
        assert current().traceparent == PARENT


def test_requests_inside_of_a_span_carry_its_context(recorded: RecordedSpans) -> None:
    with bound(Trace("r", PARENT)), spans.span("outer", parent=current()) as outer, spans.span("inner") as inner:
        assert current().headers() == {"X-Request-ID": "r", "traceparent": inner.traceparent}
    child, parent = recorded.ended

    assert outer.traceparent.split("-")[1] == PARENT.split("-")[1]
    assert child.parent.span_id == parent.context.span_id
    assert f"{parent.parent.span_id:016x}" == PARENT.split("-")[2]


async def test_error_is_its_code_and_never_its_text(recorded: RecordedSpans) -> None:
    with pytest.raises(ModelUnavailable), spans.span("asked"):
        raise ModelUnavailable("Paul's diary was refused")
    with pytest.raises(asyncio.CancelledError), spans.span("stopped"):
        raise asyncio.CancelledError
    failed, stopped = recorded.ended

    assert failed.attributes == {"error.type": ModelUnavailable.code}
    assert "diary" not in failed.to_json()
    assert not failed.events
    assert stopped.status.status_code is otel.StatusCode.UNSET


def test_attempt_names_the_one_before_it_without_having_met_it(recorded: RecordedSpans) -> None:
    link = spans.traceparent_of_attempt(PARENT, "run", 17)
    with spans.span("attempt", parent=Trace(traceparent=PARENT), links=[link]):
        pass
    (span,) = recorded.ended

    assert [f"{link.context.span_id:016x}" for link in span.links] == [f"{spans.attempt_id('run', 17):016x}"]
    assert spans.attempt_id("run", 17) != spans.attempt_id("run", 18) != spans.attempt_id("other", 18)


def test_runs_without_a_context_have_a_valid_one_of_their_own() -> None:
    root = Trace.from_headers(None, spans.root_of("run")).traceparent

    assert root == spans.root_of("run") != spans.root_of("other")


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("team=a, user=b;secret=1 ,other=c", "team=a,user=b"),
        ("team=%20x%2C,user", "team=%20x%2C"),
        ('team="quoted",user=b', "user=b"),
        ("team=" + "x" * 3000, ""),
        ("TEAM=a", ""),
        ("team=a\r\nX: y", ""),
        ("", ""),
    ],
)
def test_baggage_is_kept_by_key(header: str, kept: str) -> None:
    assert Trace.from_headers(None, None, header, ("team", "user")).baggage == kept
    assert Trace.from_headers(None, None, header).baggage == ""


def test_baggage_is_in_the_context_of_tools(recorded: RecordedSpans) -> None:
    from opentelemetry import baggage, propagate

    carrier: dict[str, str] = {}
    with spans.span("call", parent=Trace(traceparent=PARENT, baggage="team=a%20b")):
        assert baggage.get_baggage("team") == "a b"
        propagate.inject(carrier)

    assert carrier["baggage"] == "team=a+b"
