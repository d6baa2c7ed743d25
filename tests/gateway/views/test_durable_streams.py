"""Durable Streams: the reader's answers over a run, and the protocol's own client."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from starlette.applications import Starlette

from stagebus.gateway.app import create_app
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.page_reader import CONCURRENT_LONG_PAGES_MAX, CONCURRENT_PAGES_MAX
from stagebus.gateway.streaming.views import stored_view
from stagebus.gateway.views import durable_streams
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START, EventId
from stagebus.shared.domain.events import Cancel, Error, Event, StageStarted
from stagebus.shared.storage import keys
from tests.gateway.conftest import ClientOf, client
from tests.support import runs_by_hand, scripted_log
from tests.support.runs_by_hand import RunByHand, chunk
from tests.support.third_party import node_driver
from tests.support.waiting import until, until_equal

ZERO = "000000000000-000000000000"
NO_RUN = "01J9ZK3V7Q8E5W2R4T6Y8U0P1A"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"long_poll_s": 0.3, "page_max_events": 6, "drain_spread_s": 0})


def offset_of(event_id: EventId | str) -> str:
    attempt, sequence = str(event_id).split("-")
    return f"{attempt:0>12}-{sequence:0>12}"


def path_of(run: RunByHand, stage_id: str = "") -> str:
    return f"/durable/runs/{run.run_id}" + (f"/stages/{stage_id}" if stage_id else "")


async def native_events(http: httpx.AsyncClient, run: RunByHand, stage_id: str = "") -> list[Any]:
    """Returns the events that the native API has, each as id, event and data."""
    url = f"/runs/{run.run_id}{f'/stages/{stage_id}' if stage_id else ''}/events?limit=1000"
    page = (await http.get(url, headers={"Accept": "application/json"})).json()
    return page["events"]  # type: ignore[no-any-return]


def frames_of(body: str) -> list[tuple[str, Any]]:
    """Returns the events of a stream. Each data event is followed by its control event."""
    frames = scripted_log.frames_of(body)
    names = [name for name, _ in frames]
    assert names[-1] == "control"
    assert "data data" not in " ".join(names)
    return frames


def messages_of(body: str) -> list[Any]:
    return [message for name, data in frames_of(body) if name == "data" for message in data]


# --- the protocol's client ---------------------------------------------------


async def test_client_has_every_event_once_live_late_and_torn_at_every_frame(
    url: str, http: httpx.AsyncClient, hub: Hub, run: RunByHand
) -> None:
    """A stage restarts in mid-text, and that is a message like others."""
    frame_count = 1 + 2 * (len(scripted_log.EVENTS) + 1)
    torn = [{"live": "sse", "tearAt": frame} for frame in range(1, frame_count)]
    readers = [{"live": "sse"}, {"live": "long-poll"}, *torn]
    async with node_driver("durable_streams.mjs", url) as node:
        following = asyncio.create_task(node.ask(do="follow", path=run.run_id, readers=readers))
        await until_equal(lambda: hub.open_streams, len(readers))
        await until(lambda: all(stream.subscription.is_live for stream in hub._all_streams()))
        await scripted_log.tell(run)
        live = await following
        late = await node.ask(do="follow", path=run.run_id, readers=[{"live": "sse"}, {"live": True}])
        whole, page = [await node.ask(do="json", path=run.run_id, live=live) for live in (True, False)]
        events = await native_events(http, run)
        offset = offset_of(events[7]["id"])
        path = f"{run.run_id}/stages/synthesis"
        staged = await node.ask(do="follow", path=path, readers=[{"live": "sse", "offset": offset}])
        gone = await node.ask(do="follow", path=run.run_id, readers=[{"live": "sse", "offset": offset_of("7-7")}])

    assert [reader["torn"] for reader in live] == [0, 0] + [1] * len(torn)
    for reader in [*live, *late]:
        assert reader["items"] == events
        assert reader["offset"] == offset_of(events[-1]["id"])
    assert staged[0]["items"] == await native_events(http, run, "synthesis")
    assert gone[0]["status"] == 410
    assert (whole, page) == (events, events[:6])


# --- pages -------------------------------------------------------------------


async def test_pages_lead_to_the_closed_end_and_have_tags(http: httpx.AsyncClient, run: RunByHand) -> None:
    ids = await run.say("a", "b", "c", "d", "e", "f", "g")
    opened = await http.get(path_of(run), params={"offset": "-1"})
    ids.append(await run.end())
    pages = [await http.get(path_of(run))]
    while "stream-up-to-date" not in pages[-1].headers:
        pages.append(await http.get(path_of(run), params={"offset": pages[-1].headers["stream-next-offset"]}))
    end = await http.get(path_of(run), params={"offset": offset_of(ids[-1])})
    head = await http.head(path_of(run))
    same = await http.get(path_of(run), headers={"If-None-Match": f'"x", W/{pages[0].headers["etag"]}'})

    assert [len(page.json()) for page in pages] == [6, 3]
    assert [message for page in pages for message in page.json()] == await native_events(http, run)
    assert opened.content == pages[0].content
    assert [page.headers.get("stream-closed") for page in [*pages, end, head]] == [None, "true", "true", "true"]
    assert {page.headers["stream-next-offset"] for page in (pages[-1], end, head)} == {offset_of(ids[-1])}
    assert (end.json(), end.headers["stream-up-to-date"]) == ([], "true")
    for page in pages:
        assert page.headers["content-type"] == "application/json"
        assert page.headers["cache-control"].startswith("private")
        assert page.headers["x-run-id"] == run.run_id
    assert (head.headers["content-type"], head.headers["cache-control"]) == ("application/json", "no-store")
    assert "content-length" not in head.headers
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", pages[0].headers["etag"])
    assert len({page.headers["etag"] for page in [*pages, end]}) == 3


async def test_tag_changes_when_a_last_page_is_no_longer_the_last(http: httpx.AsyncClient, run: RunByHand) -> None:
    """A client must not keep `Stream-Up-To-Date` or an open end with a page that has the same messages."""
    await run.say("a", "b", "c", "d", "e")
    tags = [(await http.get(path_of(run))).headers["etag"]]
    await run.end()
    tags.append((await http.get(path_of(run))).headers["etag"])

    assert len(set(tags)) == 2


async def test_now_skips_what_is_there(http: httpx.AsyncClient, run: RunByHand) -> None:
    (last,) = await run.say("a")
    response = await http.get(path_of(run), params={"offset": "now"})

    assert (response.json(), response.headers["stream-up-to-date"]) == ([], "true")
    assert response.headers["stream-next-offset"] == offset_of(last)
    assert response.headers["cache-control"] == "no-store"
    assert "etag" not in response.headers


async def test_stage_has_its_own_offsets_and_the_end_of_the_run(http: httpx.AsyncClient, run: RunByHand) -> None:
    empty = await http.get(path_of(run, "tools"))
    (first,) = await run.begin("tools")
    await run.say("x", "y")
    tails = [await http.head(path_of(run, "tools")), await http.get(path_of(run, "tools"), params={"offset": "now"})]
    last = await run.end()
    whole = await http.get(path_of(run, "tools"))

    assert (empty.json(), empty.headers["stream-next-offset"], empty.headers["stream-up-to-date"]) == ([], ZERO, "true")
    assert [tail.headers["stream-next-offset"] for tail in tails] == [offset_of(first)] * 2
    assert whole.json() == await native_events(http, run, "tools")
    assert [message["id"] for message in whole.json()] == [str(first), str(last)]
    assert whole.headers["stream-closed"] == "true"


@pytest.mark.parametrize(
    "query",
    [
        "offset=", "offset=0", "offset=-2", "offset=0-0", "offset=5204-118", f"offset={ZERO}&offset={ZERO}",
        f"offset={ZERO}%0a", "offset=NOW", f"offset=-{ZERO}", f"offset=%D9%A0{ZERO[1:]}",
        "live=sse", "live=long-poll", "offset=-1&live=", "offset=-1&live=poll", "offset=-1&live=true",
    ],
)  # fmt: skip
async def test_bad_query_is_400(api: httpx.AsyncClient, run: RunByHand, query: str) -> None:
    response = await api.get(f"{path_of(run)}?{query}")

    assert (response.status_code, response.json()["code"]) == (400, "bad_offset")


async def test_offset_that_the_log_has_not_is_gone_and_the_start_is_there(
    api: httpx.AsyncClient, redis: Redis, run: RunByHand
) -> None:
    lost, last = await run.say("a", "b")
    await redis.xdel(keys.stage_stream(run.run_id, "extraction"), str(lost))
    for offset in (offset_of(lost), offset_of(EventId(last.attempt, last.sequence + 1)), "9" * 12 + "-" + "9" * 12):
        for live in ("", "&live=long-poll", "&live=sse"):
            response = await api.get(f"{path_of(run)}?offset={offset}{live}")
            assert (response.status_code, response.json()["code"]) == (410, "offset_gone")
    fresh = await api.get(f"{path_of(run)}?offset=-1")

    assert [message["id"] for message in fresh.json()][1:] == [str(last)]


async def test_only_reading_and_only_what_there_is(api: httpx.AsyncClient, run: RunByHand) -> None:
    for path in (path_of(run), path_of(run, "extraction")):
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            response = await api.request(method, path)
            assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    for path in (
        f"/durable/runs/{NO_RUN}",
        "/durable/runs/nope",
        path_of(run, "thinking"),
        f"/durable/runs/{NO_RUN}/stages/run",
    ):
        for query in ("", "?offset=now", "?offset=now&live=long-poll", "?offset=-1&live=sse"):
            assert (await api.get(path + query)).status_code == 404
        assert (await api.head(path)).status_code == 404


async def test_run_of_another_tenant_does_not_exist(client_of: ClientOf) -> None:
    alice, bob = await client_of("alice"), await client_of("bob")
    run_id = (await alice.post("/runs", json={"messages": [{"role": "user", "content": "Hi"}]})).json()["id"]

    assert (await alice.get(f"/durable/runs/{run_id}")).status_code == 200
    for query in ("", "?offset=now", "?offset=-1&live=sse", "?offset=-1&live=long-poll"):
        response = await bob.get(f"/durable/runs/{run_id}{query}")
        assert response.status_code == 404
        assert "x-run-id" not in response.headers


async def test_ticket_opens_its_own_run_only(client_of: ClientOf) -> None:
    alice = await client_of("alice")
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    own, other = [(await alice.post("/runs", json=body)).json()["id"] for _ in range(2)]
    ticket = (await alice.post(f"/runs/{own}/ticket")).json()["ticket"]
    del alice.headers["authorization"]
    answers = [await alice.get(f"/durable/runs/{run_id}", params={"ticket": ticket}) for run_id in (own, other)]

    assert [response.status_code for response in answers] == [200, 404]


async def test_page_of_another_origin_may_ask_for_the_end(redis: Redis, settings: Settings, run: RunByHand) -> None:
    """A HEAD request with a key is asked about first."""
    app = create_app(settings.model_copy(update={"cors_origins": ("https://shop.test",)}))
    origin = {"Origin": "https://shop.test"}
    asked = {"Access-Control-Request-Method": "HEAD", "Access-Control-Request-Headers": "authorization,if-none-match"}
    async with app.router.lifespan_context(app), client(app, origin) as page:
        preflight = await page.options(path_of(run), headers=asked)
        head = await page.head(path_of(run))

    assert preflight.status_code == 200
    exposed = head.headers["access-control-expose-headers"].lower()
    assert {"stream-next-offset", "stream-up-to-date", "stream-closed", "stream-cursor"} <= set(exposed.split(", "))


# --- long polls --------------------------------------------------------------


async def test_long_poll_waits_for_a_message_or_the_end(http: httpx.AsyncClient, hub: Hub, run: RunByHand) -> None:
    (tail,) = await run.say("a")
    params = {"offset": offset_of(tail), "live": "long-poll"}
    silent = await http.get(path_of(run), params=params)
    at_now, other_stage = (
        asyncio.create_task(http.get(path, params={"offset": "now", "live": "long-poll", "cursor": "99999999"}))
        for path in (path_of(run), path_of(run, "tools"))
    )
    await until_equal(lambda: hub.open_streams, 2)
    (news,) = await run.say("b")
    found, nothing = await at_now, await other_stage
    waiting = asyncio.create_task(http.get(path_of(run), params={"offset": offset_of(news), "live": "long-poll"}))
    await until_equal(lambda: hub.open_streams, 1)
    end = await run.end()
    closing = await waiting
    closed = await http.get(path_of(run), params={"offset": offset_of(end), "live": "long-poll"})

    for response, position in ((silent, tail), (nothing, None)):
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["stream-next-offset"] == (offset_of(position) if position else ZERO)
        assert response.headers["stream-up-to-date"] == "true"
        assert response.headers["stream-cursor"].isdecimal()
    assert [message["id"] for message in found.json()] == [str(news)]
    assert int(found.headers["stream-cursor"]) > 99999999
    assert "etag" not in found.headers
    assert (closing.json()[-1]["event"], closing.headers["stream-closed"]) == ("done", "true")
    assert (closed.status_code, closed.headers["stream-closed"]) == (204, "true")
    assert closed.headers["stream-next-offset"] == offset_of(end)


# --- server-sent events ------------------------------------------------------


async def opened(http: httpx.AsyncClient, hub: Hub, *urls: str) -> list["asyncio.Task[httpx.Response]"]:
    """Opens streams and waits until all are live."""
    before = hub.open_streams
    streams = [asyncio.create_task(http.get(url)) for url in urls]
    await until_equal(lambda: hub.open_streams, before + len(urls))
    await until(lambda: all(stream.subscription.is_live for stream in hub._all_streams()))
    return streams


@pytest.mark.parametrize("end", [None, Cancel(), Error(error="it broke", code="internal")])
async def test_stream_is_closed_by_the_runs_end(
    http: httpx.AsyncClient, hub: Hub, run: RunByHand, end: Event | None
) -> None:
    await run.say(*"abcdefgh")
    sse = "?live=sse&offset="
    streams = await opened(http, hub, *(path_of(run, stage) + sse + "-1" for stage in ("", "extraction", "tools")))
    await run.put(chunk("i"), StageStarted(stage_id="tools", attempt=1), chunk("j"))  # one batch of two stages
    last = await run.end(end)
    whole, stage, tools = [await stream for stream in streams]
    late = await http.get(path_of(run) + sse + offset_of(last))

    assert messages_of(whole.text) == await native_events(http, run)
    assert messages_of(stage.text) == await native_events(http, run, "extraction")
    assert messages_of(tools.text) == await native_events(http, run, "tools")
    controls = [data for name, data in frames_of(whole.text) if name == "control"]
    assert [control.get("upToDate") for control in controls] == [None, True, True, True]
    assert frames_of(tools.text)[0][1]["streamNextOffset"] == ZERO
    closing = {"streamNextOffset": offset_of(last), "upToDate": True, "streamClosed": True}
    for response in (whole, stage, tools, late):
        assert frames_of(response.text)[-1] == ("control", closing)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache, no-transform"
    assert len(frames_of(late.text)) == 1
    assert "retry:" not in whole.text


async def test_stream_ends_cleanly_when_its_time_is_over_and_at_a_drain(
    http: httpx.AsyncClient, hub: Hub, run: RunByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tail,) = await run.say("a")
    url = path_of(run) + "?offset=now&live=sse&cursor=99999999"
    (lasting,) = await opened(http, hub, url)
    monkeypatch.setattr(durable_streams, "SSE_LIFE_S", (0, 0))
    over = await http.get(url)
    poll = asyncio.create_task(http.get(path_of(run) + "?offset=now&live=long-poll"))
    await until_equal(lambda: hub.open_streams, 2)
    assert not lasting.done()
    await hub.drain()
    refused = [await http.get(path_of(run) + f"?offset=now&live={live}") for live in ("sse", "long-poll")]

    for response in (over, await lasting):
        ((name, control),) = frames_of(response.text)
        assert (name, control["streamNextOffset"], control["upToDate"]) == ("control", offset_of(tail), True)
        assert int(control["streamCursor"]) > 99999999
    assert (await poll).status_code == 204
    assert [(response.status_code, response.headers["retry-after"]) for response in refused] == [(503, "2")] * 2


async def test_stream_that_ends_before_the_hub_has_read_the_log_has_told_the_offset(
    http: httpx.AsyncClient, hub: Hub, run: RunByHand
) -> None:
    """As when Redis goes away and the gateway is stopped."""
    for _ in range(CONCURRENT_PAGES_MAX - CONCURRENT_LONG_PAGES_MAX):
        await hub.page_reader.short_pages.acquire()
    stream = asyncio.create_task(http.get(path_of(run) + "?offset=-1&live=sse"))
    await until_equal(lambda: hub.open_streams, 1)
    await hub.drain()

    assert messages_of((await stream).text) == await native_events(http, run)


async def test_stream_that_is_closed_while_it_opens_sends_its_first_page(hub: Hub, run: RunByHand) -> None:
    stream = hub.new_stream(run.run_id, START, stored_view(None), is_strict=True, life_s=60)
    stream.subscription.begin_with(b"first")
    body = hub.relay(stream, nullcontext(True))
    await anext(body)
    stream.close()

    assert [data async for data in body] == [b"first"]


async def test_stream_ends_cleanly_at_a_gap_and_the_next_request_is_told(
    http: httpx.AsyncClient, hub: Hub, redis: Redis, run: RunByHand
) -> None:
    (stream,) = await opened(http, hub, path_of(run) + "?offset=now&live=sse")
    (lost,) = await run.say("a")
    await until(lambda: hub._all_streams()[0].subscription.position == lost)
    with run.messages_lost():
        await run.say("b")
    await redis.xdel(keys.stage_stream(run.run_id, "extraction"), str(lost))
    hub._all_streams()[0].catch_up()
    response = await stream

    assert frames_of(response.text)[-1][1]["streamNextOffset"] == offset_of(lost)
    assert (await http.get(path_of(run) + f"?offset={offset_of(lost)}&live=sse")).status_code == 410


async def test_streams_beyond_the_limit_are_refused(app: Starlette, http: httpx.AsyncClient, run: RunByHand) -> None:
    hub = app.state.gateway.hub
    hub.open_streams += hub._settings.streams_max
    responses: Sequence[httpx.Response] = [
        await http.get(path_of(run) + f"?offset=now&live={live}") for live in ("sse", "long-poll")
    ]
    hub.open_streams -= hub._settings.streams_max

    assert [response.status_code for response in responses] == [429, 429]
    assert all("retry-after" in response.headers for response in responses)


async def test_readers_of_one_run_get_the_same_bytes(http: httpx.AsyncClient, hub: Hub, redis: Redis) -> None:
    """A batch is encoded once for all of them, whatever other runs say in between."""
    runs = [await runs_by_hand.start(redis) for _ in range(2)]
    streams = await opened(http, hub, *(path_of(run) + "?offset=now&live=sse" for run in runs for _ in range(2)))
    for text in "abcdef":
        for run in runs:
            await run.say(text)
    for run in runs:
        await run.end()
        await runs_by_hand.stop(run)
    bodies = [(await stream).text for stream in streams]

    assert [bodies[0], bodies[2]] == [bodies[1], bodies[3]]
    for body, run in zip(bodies[::2], runs, strict=True):
        assert messages_of(body) == (await native_events(http, run))[1:]
