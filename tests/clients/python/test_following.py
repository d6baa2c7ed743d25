"""The client's promise: each event once and in order, whatever the connections do."""

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
    Received,
    Refused,
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


async def follow(gateway: FakeGateway, cursor: str = "", **options) -> list[Received]:
    """All that the client says of the run."""
    async with (
        asyncio.timeout(10),
        AsyncStagebus(gateway.url, **options) as client,
        aclosing(client.runs.resume("01J", cursor).events()) as events,
    ):
        return [event async for event in events]


def sequences(events: list[Received]) -> list[int]:
    return [int(event.id.split("-")[1]) for event in events]


def after(cursor: str | None) -> bytes:
    """The log after a cursor, as a gateway sends it."""
    return b"".join(LOG[int(cursor.split("-")[1]) if cursor else 0 :])


async def test_events_come_to_the_terminal_one() -> None:
    async with FakeGateway.scripted(WHOLE) as gateway:
        events = await follow(gateway)

    assert sequences(events) == [1, 2, 3, 4]
    assert events[-1] == Received("7-4", "done", {"stage_id": "run"})
    assert gateway.asked[0].path == "/runs/01J/events"
    assert gateway.cursors() == [None]


async def test_stream_that_stays_open_after_the_end_is_left() -> None:
    async with FakeGateway.scripted(WHOLE._replace(is_left_open=True)) as gateway:
        assert len(await follow(gateway)) == 4


@pytest.mark.parametrize("is_cut", [False, True])
async def test_cut_at_every_byte_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch, is_cut: bool) -> None:
    """Each run's first connection brings the bytes up to the cut, its others what the cursor asks for."""
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


async def test_client_goes_on_from_its_cursor() -> None:
    async with FakeGateway.scripted(
        Answer(RETRY + frame(3)), Answer(b": ping\n\n" + RETRY, is_cut=True), Answer(END)
    ) as gateway:
        assert sequences(await follow(gateway, "7-2")) == [3, 4]

    assert gateway.cursors() == ["7-2", "7-3", "7-3"]


async def test_doubles_are_dropped() -> None:
    body = RETRY + frame(1) + frame(1) + frame(2) + frame(1) + frame(3) + END
    async with FakeGateway.scripted(Answer(body)) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]


async def test_hole_is_asked_for_again() -> None:
    async with FakeGateway.scripted(Answer(RETRY + frame(1) + frame(3)), Answer(after("7-1"))) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]

    assert gateway.cursors() == [None, "7-1"]


async def test_hole_that_stays_is_an_error() -> None:
    async with FakeGateway(lambda _: Answer(RETRY + frame(3))) as gateway:
        with pytest.raises(StreamBroken, match="7-3 after sequence 0"):
            await follow(gateway)


async def test_gap_takes_back_what_came_from_its_earliest_on() -> None:
    gap = b'event: gap\ndata: {"requested":"7-3","earliest":"9-2","latest":"9-3"}\n\n'
    anew = b"id: 9-2\nevent: a\ndata: {}\n\nid: 9-3\nevent: done\ndata: {}\n\n"
    async with FakeGateway.scripted(Answer(RETRY + frame(1) + frame(2) + frame(3)), Answer(gap + anew)) as gateway:
        events = await follow(gateway)

    assert [(event.id, event.event) for event in events[3:]] == [("", "gap"), ("9-2", "a"), ("9-3", "done")]
    assert events[3].data["earliest"] == "9-2"


async def test_204_means_that_the_client_has_it_all() -> None:
    async with FakeGateway.scripted(Answer(status=204)) as gateway:
        assert await follow(gateway, "7-4") == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_passing_trouble_is_waited_out(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    async with FakeGateway.scripted(Answer(status=status), WHOLE) as gateway:
        assert len(await follow(gateway)) == 4


async def test_answer_of_another_kind_is_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a hotel's network, say."""
    monkeypatch.setattr(stream_follower, "RETRY_S", 0)
    page, no_route = Answer(b"<html>", media_type="text/html"), Answer(b"404 page not found", 404, "text/plain")
    async with FakeGateway.scripted(page, no_route, WHOLE) as gateway:
        assert len(await follow(gateway)) == 4
    async with FakeGateway(lambda _: page) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Unreachable):
            await follow(gateway, patience_s=0)
        with pytest.raises(Unreachable, match="not a Stagebus gateway"):
            await client.runs.list()


async def test_unknown_run_is_refused_with_the_gateway_s_words() -> None:
    problem = Answer(b'{"detail":"there is no run","code":"run_not_found"}', 404, PROBLEM)
    async with FakeGateway.scripted(problem) as gateway:
        with pytest.raises(NotFound, match="there is no run") as caught:
            await follow(gateway)
    assert caught.value.status == 404
    assert caught.value.code == "run_not_found"


async def test_line_separators_inside_the_data_are_no_line_ends() -> None:
    data = '{"stage_id":"\u2028 \u0085"}'
    async with FakeGateway.scripted(Answer(frame(1, data=data) + frame(2, "done", DONE))) as gateway:
        assert (await follow(gateway))[0].data == {"stage_id": "\u2028 \u0085"}


async def test_backoff_follows_the_server_s_retry_and_grows() -> None:
    waits: list[tuple[str, float]] = []
    empty = Answer(b"retry: 10\n\n")
    async with FakeGateway.scripted(empty, empty, empty, Answer(frame(1)), Answer(after("7-1"))) as gateway:
        await follow(gateway, on_lost=lambda cursor, wait_s: waits.append((cursor, wait_s)))

    assert [cursor for cursor, _ in waits] == ["", "", "", "7-1"]
    for (_, wait_s), longest_s in zip(waits, [0.01, 0.02, 0.04, 0.01], strict=True):
        assert longest_s / 2 <= wait_s <= longest_s


async def test_gateway_that_is_not_there_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_gateway_that_answered_any_request_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was just made is not given up because the gateway restarts."""
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


async def test_gateway_that_was_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_follower, "FIRST_CONTACT_MAX_S", 0)
    async with FakeGateway.scripted(
        Answer(RETRY + frame(1)), Answer(status=503), Answer(status=503), Answer(after("7-1"))
    ) as gateway:
        assert sequences(await follow(gateway)) == [1, 2, 3, 4]


def test_quiet_connection_that_is_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a person sends pings alone, for longer than a gateway that is away is waited for."""
    now = 0.0
    monkeypatch.setattr(stream_follower.time, "monotonic", lambda: now)
    place = EventSequencer("7-1")
    way = StreamFollower("http://gateway", "01J", place, lambda _cursor, _wait_s: None, None, is_found=True)
    for _ in range(5):
        assert way.open(httpx.Response(200, headers={"content-type": "text/event-stream"}))
        now += stream_follower.PATIENCE_S + 1

        assert way.wait_s(httpx.ReadError("")) <= stream_follower.RETRY_S
    now += stream_follower.PATIENCE_S + 1
    with pytest.raises(Unreachable):
        way.wait_s(httpx.ConnectError(""))


def test_how_long_silence_is_goes_by_the_gateway_s_pings() -> None:
    way = StreamFollower("http://gateway", "01J", EventSequencer(), lambda _cursor, _wait_s: None, None, is_found=True)
    head = {"content-type": "text/event-stream"}

    assert way.open(httpx.Response(200, headers=head))
    assert way.silence_s == 35
    assert way.open(httpx.Response(200, headers=head | {"x-ping-s": "60"}))
    assert way.silence_s == 210
    assert way.open(httpx.Response(200, headers=head | {"x-ping-s": "inf"}))
    assert way.silence_s == 210


async def test_create_is_sent_again_under_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_requests, "RETRY_S", 0)
    created = Answer(b'{"id":"01J","status":"queued"}', 202, "application/json")
    async with FakeGateway.scripted(
        Answer(b"{", 200, is_cut=True), Answer(b"", 503), created
    ) as gateway, AsyncStagebus(gateway.url) as client:  # fmt: skip
        assert (await client.runs.create(user_prompt="hi")).id == "01J"

    assert len({asked.headers["idempotency-key"] for asked in gateway.asked}) == 1
    assert all(orjson.loads(asked.body) == {"user_prompt": "hi"} for asked in gateway.asked)
    assert len(gateway.asked) == 3


async def test_refused_create_is_not_sent_again() -> None:
    refusal = Answer(b'{"title":"Invalid request","detail":"model: unknown"}', 422, PROBLEM)
    async with FakeGateway.scripted(refusal) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Refused, match="model: unknown"):
            await client.runs.create()


async def test_run_id_stays_inside_its_path() -> None:
    async with FakeGateway(lambda _: Answer(b"{}", 404, PROBLEM)) as gateway, AsyncStagebus(gateway.url) as client:
        with pytest.raises(Refused, match="answered 404"):
            await client.runs.resume("../x?y=/z").cancel()

    assert gateway.asked[0].path == "/runs/..%2Fx%3Fy%3D%2Fz/cancel"


def test_place_starts_where_it_is_told() -> None:
    assert EventSequencer("0").cursor == EventSequencer("-1").cursor == EventSequencer("").cursor == ""
    assert EventSequencer("5204-118").cursor == "5204-118"
    with pytest.raises(BadCursor, match="such as 5204-118"):
        EventSequencer("junk")


def test_place_takes_the_next_event_only() -> None:
    place = EventSequencer("5-2")

    def take(event_id: str, event: str = "a") -> Received | None:
        return place.take(ServerSentEvent(event=event, data="{}", id=event_id))

    assert take("5-2") is None
    with pytest.raises(SequenceGap):
        take("5-4")
    assert take("9-3") == Received("9-3", "a", {})
    assert place.cursor == "9-3"
    assert not place.is_ended
    assert take("9-4", "error") is not None
    assert place.is_ended
