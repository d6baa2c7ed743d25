"""The Python client receives each event once and in order, whatever happens to its connections."""

import asyncio
from contextlib import aclosing

import httpx
import orjson
import pytest
from httpx_sse import ServerSentEvent

from stagebus.client import (
    AsyncStagebus,
    BadCursor,
    NotFound,
    Refused,
    RunEvent,
    StreamBroken,
    Unreachable,
    api_requests,
    stream_follower,
)
from stagebus.client.event_sequencer import EventSequencer, SequenceGap
from stagebus.client.stream_follower import StreamFollower
from tests.support.fake_gateway import DONE, RETRY, Answer, Asked, FakeGateway, frame

PROBLEM = "application/problem+json"
END = frame(4, "done", DONE)
LOG = [frame(1), frame(2), frame(3), END]
WHOLE = Answer(RETRY + b"".join(LOG))


async def follow(gateway: FakeGateway, cursor: str = "", **options) -> list[RunEvent]:
    """Follow the run and return what the client yields."""
    async with (
        asyncio.timeout(10),
        AsyncStagebus(gateway.url, **options) as client,
        aclosing(client.runs.resume("01J", cursor).events()) as events,
    ):
        return [event async for event in events]


def sequences(events: list[RunEvent]) -> list[int]:
    return [int(event.id.split("-")[1]) for event in events]


def after(cursor: str | None) -> bytes:
    """Return the log after a cursor, as a gateway sends it."""
    return b"".join(LOG[int(cursor.split("-")[1]) if cursor else 0 :])


async def test_stream_ends_with_the_terminal_event() -> None:
    async with FakeGateway.scripted(WHOLE) as gateway:
        events = await follow(gateway)

    assert sequences(events) == [1, 2, 3, 4]
    assert events[-1] == RunEvent("7-4", "done", {"stage_id": "run"})
    assert gateway.asked[0].path == "/runs/01J/events"
    assert gateway.cursors() == [None]


async def test_open_stream_is_closed_after_the_terminal_event() -> None:
    async with FakeGateway.scripted(WHOLE._replace(is_left_open=True)) as gateway:
        assert len(await follow(gateway)) == 4


@pytest.mark.parametrize("is_cut", [False, True])
async def test_stream_cut_at_every_byte_yields_each_event_once(monkeypatch: pytest.MonkeyPatch, is_cut: bool) -> None:
    """The first connection of each run is cut; its next ones send what follows the cursor."""
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    seen: set[str] = set()

    def answer(asked: Asked) -> Answer:
        if asked.path not in seen:
            seen.add(asked.path)
            length = int(asked.path.split("/")[2])
            return Answer(WHOLE.body[:length], is_cut=is_cut)
        return Answer(RETRY + after(asked.headers.get("last-event-id")))

    async with FakeGateway(answer) as gateway, AsyncStagebus(gateway.url) as client:
        for length in range(len(WHOLE.body) + 1):
            async with aclosing(client.runs.resume(str(length)).events()) as events:
                assert sequences([event async for event in events]) == [1, 2, 3, 4]


async def test_reconnect_sends_the_cursor() -> None:
    async with FakeGateway.scripted(
        Answer(RETRY + frame(3)), Answer(b": ping\n\n" + RETRY, is_cut=True), Answer(END)
    ) as gateway:
        assert sequences(await follow(gateway, "7-2")) == [3, 4]

    assert gateway.cursors() == ["7-2", "7-3", "7-3"]


async def test_duplicate_events_are_dropped() -> None:
    body = RETRY + frame(1) + frame(1) + frame(2) + frame(1) + frame(3) + END
    async with FakeGateway.scripted(Answer(body)) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]


async def test_sequence_gap_requests_the_log_again() -> None:
    async with FakeGateway.scripted(Answer(RETRY + frame(1) + frame(3)), Answer(after("7-1"))) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]

    assert gateway.cursors() == [None, "7-1"]


async def test_sequence_gap_is_retried_immediately() -> None:
    waits: list[float] = []
    async with FakeGateway.scripted(Answer(b"retry: 60000\n\n" + frame(1) + frame(3)), Answer(after("7-1"))) as gateway:
        await follow(gateway, on_lost=lambda _, wait_s: waits.append(wait_s))

    assert waits == [0]


async def test_persistent_sequence_gap_becomes_a_gap_event() -> None:
    async with FakeGateway(lambda _: Answer(RETRY + frame(1) + frame(3) + END)) as gateway:
        events = await follow(gateway)

    assert [(event.event, event.id) for event in events[:3]] == [
        ("tool_completion_chunk", "7-1"), ("gap", ""), ("tool_completion_chunk", "7-3"),
    ]  # fmt: skip
    assert events[1].data == {"requested": "7-1", "earliest": "7-3", "latest": "7-3"}
    assert gateway.cursors() == [None, "7-1", "7-1", "7-1"]


@pytest.mark.parametrize("odd_id", ["9-2", "6-4", "9-3", "nonsense"])
async def test_event_that_contradicts_the_log_requests_it_again(odd_id: str) -> None:
    """An older attempt's later event, a newer attempt's earlier one, another last event, and a malformed id."""
    odd = f"id: {odd_id}\nevent: tool_call\ndata: {{}}\n\n".encode()
    first = Answer(RETRY + frame(1) + frame(2) + frame(3) + odd, is_left_open=True)
    async with FakeGateway.scripted(first, Answer(after("7-3"))) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]

    assert gateway.cursors() == [None, "7-3"]


@pytest.mark.parametrize("bad", [b"id: x\nevent: a\ndata: {}\n\n", b"id: 7-2\ndata: {\n\n", b"id: 7-2\ndata: 1\n\n"])
async def test_persistent_malformed_events_raise_stream_broken(bad: bytes) -> None:
    async with FakeGateway(lambda _: Answer(RETRY + frame(1) + bad)) as gateway:
        with pytest.raises(StreamBroken, match="after event 7-1"):
            await follow(gateway)

    assert len(gateway.asked) == 4


async def test_frames_without_an_id_are_ignored() -> None:
    async with FakeGateway.scripted(
        Answer(b"data: x\n\nevent: news\ndata: {}\n\n" + frame(1, "done", DONE))
    ) as gateway:
        assert sequences(await follow(gateway)) == [1]


async def test_gap_event_restarts_the_sequence_at_its_earliest() -> None:
    gap = b'event: gap\ndata: {"requested":"7-3","earliest":"9-2","latest":"9-3"}\n\n'
    replacement = b"id: 9-2\nevent: a\ndata: {}\n\nid: 9-3\nevent: done\ndata: {}\n\n"
    async with FakeGateway.scripted(
        Answer(RETRY + frame(1) + frame(2) + frame(3)), Answer(gap + replacement)
    ) as gateway:
        events = await follow(gateway)

    assert [(event.id, event.event) for event in events[3:]] == [("", "gap"), ("9-2", "a"), ("9-3", "done")]
    assert events[3].data["earliest"] == "9-2"


async def test_204_ends_the_stream() -> None:
    async with FakeGateway.scripted(Answer(status=204)) as gateway:
        assert await follow(gateway, "7-4") == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_temporary_error_is_retried(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    async with FakeGateway.scripted(Answer(status=status), WHOLE) as gateway:
        assert len(await follow(gateway)) == 4


async def test_response_of_another_server_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the login page of a hotel network."""
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    page, no_route = Answer(b"<html>", media_type="text/html"), Answer(b"404 page not found", 404, "text/plain")
    async with FakeGateway.scripted(page, no_route, WHOLE) as gateway:
        assert len(await follow(gateway)) == 4
    async with FakeGateway(lambda _: page) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Unreachable):
            await follow(gateway, patience_s=0)
        with pytest.raises(Unreachable, match="not a Stagebus gateway"):
            await client.runs.list()


async def test_unknown_run_raises_the_gateway_s_message() -> None:
    problem = Answer(b'{"detail":"there is no run","code":"run_not_found"}', 404, PROBLEM)
    async with FakeGateway.scripted(problem) as gateway:
        with pytest.raises(NotFound, match="there is no run") as caught:
            await follow(gateway)
    assert caught.value.status == 404
    assert caught.value.code == "run_not_found"


async def test_unicode_line_separators_do_not_end_a_line() -> None:
    data = '{"stage_id":"\u2028 \u0085"}'
    async with FakeGateway.scripted(Answer(frame(1, data=data) + frame(2, "done", DONE))) as gateway:
        assert (await follow(gateway))[0].data == {"stage_id": "\u2028 \u0085"}


async def test_backoff_starts_at_the_gateway_s_retry_and_doubles() -> None:
    waits: list[tuple[str, float]] = []
    empty = Answer(b"retry: 10\n\n")
    async with FakeGateway.scripted(empty, empty, empty, Answer(frame(1)), Answer(after("7-1"))) as gateway:
        await follow(gateway, on_lost=lambda cursor, wait_s: waits.append((cursor, wait_s)))

    assert [cursor for cursor, _ in waits] == ["", "", "", "7-1"]
    for (_, wait_s), longest_s in zip(waits, [0.01, 0.02, 0.04, 0.01], strict=True):
        assert longest_s / 2 <= wait_s <= longest_s


async def test_missing_gateway_raises_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    monkeypatch.setattr(api_requests, "RETRY_S", 0)
    monkeypatch.setattr(stream_follower, "FIRST_CONTACT_MAX_S", 0)
    async with FakeGateway.scripted() as gateway:
        url = gateway.url

    async with AsyncStagebus(url) as client:
        with pytest.raises(Unreachable, match=r"\(All connection attempts failed\): start one with `stagebus up`"):
            await client.runs.list(1)
        async with aclosing(client.runs.resume("01J").events()) as events:
            with pytest.raises(Unreachable):
                await anext(events)


async def test_gateway_that_answered_a_request_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart of the gateway does not end the following of a run that was just created."""
    monkeypatch.setattr(stream_follower, "FIRST_CONTACT_MAX_S", -1)
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    made = Answer(b'{"id":"01J"}', 202, "application/json")
    async with FakeGateway.scripted(made, Answer(status=503), WHOLE) as gateway, AsyncStagebus(gateway.url) as bus:
        run = await bus.runs.create(user_prompt="hi")
        assert sequences([event async for event in run]) == [1, 2, 3, 4]

    async with FakeGateway(lambda _: Answer(status=503)) as gateway:
        with pytest.raises(Unreachable):
            await follow(gateway)
        with pytest.raises(Unreachable):
            await follow(gateway, patience_s=0)


async def test_gateway_that_streamed_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_follower, "FIRST_CONTACT_MAX_S", 0)
    async with FakeGateway.scripted(
        Answer(RETRY + frame(1)), Answer(status=503), Answer(status=503), Answer(after("7-1"))
    ) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]


def test_lost_quiet_connection_is_reopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a person sends only pings, for longer than `PATIENCE_S`."""
    now = 0.0
    monkeypatch.setattr(stream_follower.time, "monotonic", lambda: now)
    sequencer = EventSequencer("7-1")
    follower = StreamFollower("http://gateway", "01J", sequencer, lambda _cursor, _wait_s: None, None, is_found=True)
    for _ in range(5):
        assert follower.open(httpx.Response(200, headers={"content-type": "text/event-stream"}))
        now += stream_follower.PATIENCE_S + 1

        assert follower.next_wait_s(httpx.ReadError("")) <= stream_follower.RETRY_S
    now += stream_follower.PATIENCE_S + 1
    with pytest.raises(Unreachable):
        follower.next_wait_s(httpx.ConnectError(""))


def test_silence_limit_follows_the_gateway_s_ping_interval() -> None:
    follower = StreamFollower(
        "http://gateway", "01J", EventSequencer(), lambda _cursor, _wait_s: None, None, is_found=True
    )
    head = {"content-type": "text/event-stream"}

    assert follower.open(httpx.Response(200, headers=head))
    assert follower.silence_s == 6.4
    assert follower.open(httpx.Response(200, headers=head | {"x-ping-s": "60"}))
    assert follower.silence_s == 96
    assert follower.open(httpx.Response(200, headers=head | {"x-ping-s": "inf"}))
    assert follower.silence_s == 96


async def test_create_is_retried_with_the_same_idempotency_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_requests, "RETRY_S", 0)
    created = Answer(b'{"id":"01J","status":"queued"}', 202, "application/json")
    async with FakeGateway.scripted(
        Answer(b"{", 200, is_cut=True), Answer(b"", 503), created
    ) as gateway, AsyncStagebus(gateway.url) as client:  # fmt: skip
        assert (await client.runs.create(user_prompt="hi")).id == "01J"

    assert len({asked.headers["idempotency-key"] for asked in gateway.asked}) == 1
    assert all(orjson.loads(asked.body) == {"user_prompt": "hi"} for asked in gateway.asked)
    assert len(gateway.asked) == 3


async def test_refused_create_is_not_retried() -> None:
    refusal = Answer(b'{"title":"Invalid request","detail":"model: unknown"}', 422, PROBLEM)
    async with FakeGateway.scripted(refusal) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Refused, match="model: unknown"):
            await client.runs.create()


async def test_run_id_is_escaped_in_the_path() -> None:
    async with FakeGateway(lambda _: Answer(b"{}", 404, PROBLEM)) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Refused, match="answered 404"):
            await client.runs.resume("../x?y=/z").cancel()

    assert gateway.asked[0].path == "/runs/..%2Fx%3Fy%3D%2Fz/cancel"


def test_sequencer_starts_after_the_cursor() -> None:
    assert EventSequencer("0").cursor == EventSequencer("-1").cursor == EventSequencer("").cursor == ""
    assert EventSequencer("5204-118").cursor == "5204-118"
    with pytest.raises(BadCursor, match="such as 5204-118"):
        EventSequencer("junk")


def test_sequencer_accepts_only_the_next_event() -> None:
    sequencer = EventSequencer("5-2")

    def accept(event_id: str, event: str = "a") -> list[RunEvent]:
        return sequencer.accept(ServerSentEvent(event=event, data="{}", id=event_id))

    assert accept("5-2") == []
    with pytest.raises(SequenceGap):
        accept("5-4")
    assert accept("9-3") == [RunEvent("9-3", "a", {})]
    assert sequencer.cursor == "9-3"
    assert not sequencer.is_ended
    assert accept("9-4", "error")
    assert sequencer.is_ended


def test_sequencer_accepts_any_attempt_after_a_gap() -> None:
    """The log was rewritten: its older events may come from any attempt."""
    sequencer = EventSequencer("7-3")
    gap = ServerSentEvent(event="gap", data='{"requested":"7-3","earliest":"0-2","latest":"0-4"}')

    assert [event.event for event in sequencer.accept(gap)] == ["gap"]
    assert sequencer.accept(ServerSentEvent(event="a", data="{}", id="0-2")) == [RunEvent("0-2", "a", {})]


# --- streams that a proxy holds back -----------------------------------------

HELD_BACK = Answer(is_left_open=True)


def page(*sequences: int, **fields: object) -> Answer:
    """Build a page of the log; 4 is its terminal event."""
    events = [
        {"id": f"7-{n}", "event": "done" if n == 4 else "tool_progress", "data": {"stage_id": "run"}} for n in sequences
    ]
    body = {"events": events, "last_event_id": "7-1", "has_more": False, "is_ended": 4 in sequences, **fields}
    return Answer(orjson.dumps(body), media_type="application/json")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits for first bytes and between pages."""
    monkeypatch.setattr(stream_follower, "FIRST_BYTES_S", 0.1)
    monkeypatch.setattr(stream_follower, "PAGE_PAUSE_S", 0.0)
    monkeypatch.setattr(stream_follower, "EMPTY_PAGE_PAUSE_S", 0.0)
    monkeypatch.setattr(stream_follower, "RETRY_S", 0.0)


@pytest.mark.usefixtures("hasty")
async def test_stream_that_a_proxy_holds_back_is_followed_by_pages() -> None:
    """Each event arrives once, also after a page that fails and one with a gap; what the run waits for is told."""
    told: list[tuple[str, str | None]] = []
    lost: list[str] = []
    gap = {"requested": "7-2", "earliest": "7-2", "latest": "7-2"}
    answers = [
        HELD_BACK, page(1, has_more=True), page(2), page(waiting_for="worker"), Answer(status=503),
        Answer(b'{"code":"storage_unavailable"}', 503, PROBLEM), page(2, 3, gap=gap), page(4),
    ]  # fmt: skip
    async with FakeGateway.scripted(*answers) as gateway:
        events = await follow(
            gateway, on_connection=lambda now: told.append((now.transport, now.waiting_for)),
            on_lost=lambda cursor, _wait_s: lost.append(cursor),
        )  # fmt: skip

    assert [event.id for event in events] == ["7-1", "7-2", "", "7-2", "7-3", "7-4"]
    assert told == [
        ("polling", None), ("polling", "worker"), ("polling", None), ("polling", "storage"), ("polling", None),
    ]  # fmt: skip
    assert lost == ["7-2"], "only the failed page"
    assert [asked.path.partition("?")[2] for asked in gateway.asked[1:4]] == [
        "limit=500&wait=0", "limit=500&wait=0", "limit=500&wait=15",
    ]  # fmt: skip
    assert gateway.asked[1].headers["accept"] == "application/json"


@pytest.mark.usefixtures("hasty")
async def test_quiet_stream_and_slow_gateway_are_not_held_back() -> None:
    """A stream that has begun is opened once more, with patience; a gateway whose page fails keeps its stream, too."""
    lost: list[str] = []
    quiet = Answer(RETRY + frame(1), is_left_open=True)
    status = b'event: status\ndata: {"waiting_for":"storage"}\n\n'
    for first, *others in ((quiet, page()), (HELD_BACK, Answer(status=503))):
        rest = Answer(status + b"".join(LOG[1 if first is quiet else 0 :]))
        told: list[str | None] = []
        async with FakeGateway.scripted(first, *others, rest) as gateway:
            events = await follow(
                gateway, on_connection=lambda now, told=told: told.append(now.waiting_for),
                on_lost=lambda cursor, _wait_s: lost.append(cursor),
            )  # fmt: skip

        assert sequences(events) == [1, 2, 3, 4]
        assert told == ["storage", None]
    assert lost == [""], "the failed page"


@pytest.mark.usefixtures("hasty")
async def test_stream_held_back_in_its_middle_is_followed_by_pages() -> None:
    """A page has events that it should have brought; it is tried once more, since they may have come at that moment."""
    first = Answer(RETRY + frame(1) + frame(2), is_left_open=True)
    async with FakeGateway.scripted(first, page(3), HELD_BACK, page(), page(4)) as gateway:
        events = await follow(gateway)

    assert sequences(events) == [1, 2, 3, 4]
