"""The Python client follows a thread over connections that bring nothing for a while."""

import asyncio
from contextlib import aclosing

import orjson
import pytest

from stagebus.client import AsyncStagebus, stream_follower
from tests.support.fake_gateway import RETRY, Answer, FakeGateway

RUN = "01J9ZK3V7Q8E5W2R4T6Y8U0P1A"
TURN = {"run_id": RUN, "parent_run_id": None, "seq": 1, "messages": []}
STREAM = (
    RETRY
    + b"event: turn\ndata: %b\n\n" % orjson.dumps(TURN)
    + f'id: {RUN}.0-1\nevent: run_queued\ndata: {{"stage_id":"run"}}\n\n'.encode()
)


@pytest.mark.parametrize("first", [Answer(is_left_open=True), Answer(STREAM, is_left_open=True)])
async def test_thread_has_no_pages_so_a_silent_stream_is_opened_again(
    monkeypatch: pytest.MonkeyPatch, first: Answer
) -> None:
    """A request for a page would be answered with the stream, which never ends."""
    monkeypatch.setattr(stream_follower, "FIRST_BYTES_S", 0.1)
    more = f'id: {RUN}.0-2\nevent: run_started\ndata: {{"stage_id":"run"}}\n\n'.encode()
    answers = iter([first, Answer(STREAM + more, is_left_open=True)])
    async with (
        asyncio.timeout(20),
        FakeGateway(lambda _: next(answers)) as gateway,
        AsyncStagebus(gateway.url) as bus,
        aclosing(bus.threads.open("talk").events()) as events,
    ):
        seen = [event.event async for event in _until(events, "run_started")]

    assert seen == ["turn", "run_queued", "run_started"]
    assert [asked.headers["accept"] for asked in gateway.asked] == ["text/event-stream"] * 2
    assert not any("limit=" in asked.path for asked in gateway.asked)


async def _until(events, name: str):
    async for event in events:
        yield event
        if event.event == name:
            return
