"""The feed of a tenant's runs: pages, long polling, and the stream with its cursor."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.storage import keys
from stagebus.shared.store import run_store
from tests.gateway.conftest import ClientOf
from tests.support.redis_calls import subscriber_count
from tests.support.waiting import until, until_equal

JSON = {"Accept": "application/json"}
TENANT = "default"


async def create(redis: Redis, settings: Settings, tenant: str = TENANT) -> str:
    return await run_store.create_run(redis, settings, tenant=tenant, model="m", request={"timeout_s": 60})


async def page_of(api: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    response = await api.get("/runs/events", params=params, headers=JSON)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def told(page: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["event"], event["data"]["run_id"]) for event in page["events"]]


class Stream:
    """Reads a stream of the feed in the background."""

    def __init__(self, response: httpx.Response) -> None:
        self.text = ""
        self._reading = asyncio.create_task(self._read(response))

    async def _read(self, response: httpx.Response) -> None:
        async for text in response.aiter_text():
            self.text += text

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        frames = [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in self.text.split("\n\n")[:-1]]
        return [(frame["event"], json.loads(frame["data"])) for frame in frames if "event" in frame]

    @property
    def last_id(self) -> str:
        return [line for line in self.text.split("\n") if line.startswith("id: ")][-1].removeprefix("id: ")

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])


@asynccontextmanager
async def streaming(web: httpx.AsyncClient, cursor: str = "") -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": cursor} if cursor else {}
    async with web.stream("GET", "/runs/events", headers=headers) as response:
        assert response.status_code == 200
        stream = Stream(response)
        await until(lambda: asyncio.sleep(0, "retry:" in stream.text))
        yield stream
        await stream.stop()


async def test_page_without_a_cursor_is_empty_and_names_the_end(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    await create(redis, settings)
    page = await page_of(api)
    run_id = await create(redis, settings)

    assert (page["events"], page["has_more"]) == ([], False)
    assert told(await page_of(api, last_event_id=page["last_event_id"])) == [("run_created", run_id)]


async def test_pages_from_the_start_hold_every_entry_once(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    runs = [await create(redis, settings) for _ in range(5)]
    cursor, seen, has_more = "0", [], True
    while has_more:
        page = await page_of(api, last_event_id=cursor, limit=2)
        cursor, has_more = page["last_event_id"], page["has_more"]
        seen += told(page)

    assert seen == [("run_created", run_id) for run_id in runs]


async def test_long_poll_returns_at_the_next_entry(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    await create(redis, settings)
    polling = asyncio.create_task(page_of(api, wait=30))
    await until_equal(lambda: subscriber_count(redis, keys.feed(TENANT)), 1)
    run_id = await create(redis, settings)

    assert told(await asyncio.wait_for(polling, 10)) == [("run_created", run_id)]


async def test_a_cursor_that_the_feed_has_lost_gets_a_gap(
    api: httpx.AsyncClient, web: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    run_id = await create(redis, settings)
    page = await page_of(api, last_event_id="17-1")

    assert page["gap"]["requested"] == "17-1"
    assert told(page) == [("run_created", run_id)]
    async with streaming(web, "17-1") as stream:
        await until(lambda: asyncio.sleep(0, len(stream.events) == 2))
        assert [event for event, _ in stream.events] == ["gap", "run_created"]


async def test_stream_continues_at_its_cursor(web: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    """Without one it begins with what happens next, and its first frame is a cursor even if nothing has happened."""
    await create(redis, settings)
    async with streaming(web) as stream:
        cursor = stream.last_id
        first = await create(redis, settings)
        await until(lambda: asyncio.sleep(0, len(stream.events) == 1))
    second = await create(redis, settings)
    async with streaming(web, cursor) as stream:
        await until(lambda: asyncio.sleep(0, len(stream.events) == 2))

        assert [data["run_id"] for _, data in stream.events] == [first, second]


async def test_stream_finds_an_entry_whose_message_was_lost(
    web: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    """The ping's look at the feed's end shows it."""
    async with streaming(web) as stream:
        await redis.xadd(keys.feed(TENANT), {"event": "run_created", "data": '{"run_id":"silent"}'}, id="7-1")
        await until(lambda: asyncio.sleep(0, len(stream.events) == 1))

        assert stream.events[0][1] == {"run_id": "silent"}


async def test_tenants_see_their_own_feeds(client_of: ClientOf, redis: Redis, settings: Settings) -> None:
    mine, theirs = await client_of("mine"), await client_of("theirs")
    run_id = await create(redis, settings, "mine")

    assert told(await page_of(mine, last_event_id="0")) == [("run_created", run_id)]
    assert told(await page_of(theirs, last_event_id="0")) == []


async def test_a_bad_cursor_is_rejected(api: httpx.AsyncClient) -> None:
    response = await api.get("/runs/events", params={"last_event_id": "yesterday"}, headers=JSON)

    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")
    assert "1735689600000-1" in response.json()["detail"], "an example of the feed's cursors, not of a run's"


async def test_one_sees_the_feed_of_ones_own_runs(client_of: ClientOf, redis: Redis, settings: Settings) -> None:
    """With the scope runs:own, also live; the cursor passes over the others' entries."""
    client = await client_of("mine", Scope.RUNS_OWN, Scope.ON_BEHALF)
    ada = {**JSON, "Stagebus-User": "ada"}

    async def create_for(user: str) -> str:
        return await run_store.create_run(
            redis, settings, tenant="mine", model="m", request={"timeout_s": 60}, user=user
        )

    runs = {user: await create_for(user) for user in ("ada", "bob", "")}
    page = (await client.get("/runs/events", params={"last_event_id": "0"}, headers=ada)).json()
    assert told(page) == [("run_created", runs["ada"])]
    cursor = {"last_event_id": page["last_event_id"], "wait": 30}
    polling = asyncio.create_task(client.get("/runs/events", params=cursor, headers=ada))
    await until_equal(lambda: subscriber_count(redis, keys.feed("mine")), 1)
    await create_for("bob")
    mine = await create_for("ada")

    assert told((await asyncio.wait_for(polling, 10)).json()) == [("run_created", mine)]
