"""The Python client and the feed of a tenant's runs: each entry once, over broken connections; and webhooks' deliveries."""

import asyncio
import json

import pytest

from stagebus import client as stagebus_client
from stagebus.client import AsyncStagebus, BadCursor, FeedEvent, Forbidden, Stagebus
from tests.support.fake_gateway import RETRY, Answer, FakeGateway


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stagebus_client.stream_follower, "RETRY_S", 0)


def entry(entry_id: str, event: str = "run_created") -> bytes:
    return f'id: {entry_id}\nevent: {event}\ndata: {{"run_id":"R"}}\n\n'.encode()


def page(**more: object) -> Answer:
    body = {"events": [], "has_more": False, "last_event_id": "5-1", **more}
    return Answer(json.dumps(body).encode(), media_type="application/json")


async def take(url: str, count: int, cursor: str | None = None) -> list[FeedEvent]:
    events: list[FeedEvent] = []
    async with AsyncStagebus(url) as bus:
        async for event in bus.runs.events(cursor):
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_without_a_cursor_the_feed_begins_with_what_happens_next() -> None:
    """A frame that has only an id is no entry."""
    stream = Answer(RETRY + b"id: 5-1\n\n" + entry("5-2"), is_left_open=True)
    async with FakeGateway.scripted(page(), stream) as gateway:
        assert await take(gateway.url, 1) == [FeedEvent("5-2", "run_created", {"run_id": "R"})]

    assert gateway.cursors() == [None, "5-1"]


async def test_a_lost_connection_continues_at_the_last_entry() -> None:
    first = Answer(RETRY + entry("5-2") + entry("6-1"), is_cut=True)
    again = Answer(RETRY + entry("6-1") + entry("6-2", "run_ended"), is_left_open=True)
    async with FakeGateway.scripted(first, again) as gateway:
        events = await take(gateway.url, 3, "5-1")

    assert [event.id for event in events] == ["5-2", "6-1", "6-2"]
    assert gateway.cursors() == ["5-1", "6-1"]


async def test_a_gap_is_passed_on_and_older_entries_after_it() -> None:
    gap = b'event: gap\ndata: {"requested":"9-1","earliest":"2-1","latest":"3-1"}\n\n'
    async with FakeGateway.scripted(Answer(RETRY + gap + entry("2-1"), is_left_open=True)) as gateway:
        events = await take(gateway.url, 2, "9-1")

    assert [event.event for event in events] == ["gap", "run_created"]


async def test_scripts_read_the_feed_too() -> None:
    def read(url: str) -> list[str]:
        with Stagebus(url) as bus:
            for event in bus.runs.events("0"):
                return [event.id, event.event]
        return []

    async with FakeGateway.scripted(Answer(RETRY + entry("5-2"), is_left_open=True)) as gateway:
        assert await asyncio.to_thread(read, gateway.url) == ["5-2", "run_created"]


async def test_a_malformed_cursor_and_a_refusal_are_errors() -> None:
    refusal = Answer(b'{"code":"forbidden","detail":"no"}', 403, "application/problem+json")
    async with FakeGateway.scripted(refusal) as gateway:
        with pytest.raises(BadCursor):
            await take(gateway.url, 1, "yesterday")
        with pytest.raises(Forbidden):
            await take(gateway.url, 1, "0")


async def test_deliveries_of_webhooks_are_listed_and_sent_again() -> None:
    answers = [Answer(b'{"deliveries":[],"next":null}', media_type="application/json")] * 2
    answers.append(Answer(b'{"id":"a.b"}', 202, "application/json"))
    async with FakeGateway.scripted(*answers) as gateway, AsyncStagebus(gateway.url) as bus:
        await bus.webhooks.deliveries()
        await bus.webhooks.deliveries(state="failed", endpoint="billing", limit=5, before="1:x")
        assert await bus.webhooks.resend("a.b") == {"id": "a.b"}

    assert [asked.path for asked in gateway.asked] == [
        "/webhooks/deliveries?limit=20",
        "/webhooks/deliveries?limit=5&state=failed&endpoint=billing&before=1%3Ax",
        "/webhooks/deliveries/a.b/resend",
    ]
