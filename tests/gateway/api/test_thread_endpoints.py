"""Threads over HTTP: lists, one thread with its branches, its transcript, its title, and ids of any text."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from redis.asyncio import Redis

from stagebus.gateway.api import thread_endpoints
from stagebus.gateway.api.thread_markdown import render_markdown
from stagebus.shared.access_errors import USER_HEADER
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain import ids
from stagebus.shared.domain.events import Done, StageStarted
from stagebus.shared.domain.tenants import DEFAULT_TENANT, TENANT_WIDE, Scope
from stagebus.shared.domain.threads import THREAD_ID_MAX_CHARS, ThreadIdentity
from stagebus.shared.log import sse
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, run_scripts
from stagebus.shared.storage.run_scripts import LogEntry
from stagebus.shared.store import run_deletion, run_store, thread_branch, thread_list, thread_store, thread_sweep
from tests.gateway.api.schemas.test_thread_fields import ODD_IDS
from tests.gateway.api.test_thread_runs import end
from tests.gateway.conftest import ClientOf
from tests.support.redis_calls import subscriber_count
from tests.support.runs_by_hand import chunk
from tests.support.waiting import until_equal

THREAD = "/threads/chat"
JSON = {"Accept": "application/json"}


async def turn(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, text: str, thread_id: str = "chat", **fields: Any
) -> str:
    """Makes a turn and ends it; returns its run."""
    response = await api.post("/runs", json={"thread_id": thread_id, "user_prompt": text, **fields})
    assert response.status_code == 202, response.text
    run_id: str = response.json()["id"]
    await end(redis, settings, run_id)
    return run_id


async def answer(redis: Redis, run_id: str, messages: bytes, thread_id: str = "chat") -> None:
    """Lets a turn have come to messages."""
    key = keys.thread_out(keys.thread(ThreadIdentity(DEFAULT_TENANT, "", thread_id)))
    await redis.hset(key, run_id, messages)  # type: ignore[misc]


async def get(api: httpx.AsyncClient, url: str, status: int = 200, **params: Any) -> dict[str, Any]:
    response = await api.get(url, params=params)
    assert response.status_code == status, response.text
    return response.json()


async def test_notes_of_models_are_not_for_clients(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    """A turn keeps encrypted reasoning for the model that wrote it, and for nobody else."""
    run_id = await turn(api, redis, settings, "one")
    await answer(redis, run_id, b'[{"role":"assistant","content":"eins","origin":{"items":"secret"}}]')
    thread = await get(api, THREAD)
    text = (await api.get(THREAD, headers={"Accept": "text/markdown"})).text
    export = (await api.get(f"/runs/{run_id}/export")).text

    assert thread["branch"]["turns"][0]["result"] == [{"role": "assistant", "content": "eins"}]
    assert "eins" in text
    assert "secret" not in json.dumps(thread) + text + export


async def test_thread_has_its_tree_its_branches_and_the_messages_of_the_current_one(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    first = await turn(api, redis, settings, "one")
    second = await turn(api, redis, settings, "two")
    other = await turn(api, redis, settings, "two, again", parent_run_id=first)
    await answer(redis, first, b'[{"role":"assistant","content":"eins"}]')
    thread = await get(api, THREAD)

    assert [(one["run_id"], one["parent_run_id"], one["seq"]) for one in thread["turns"]] == [
        (first, None, 1), (second, first, 2), (other, first, 3),
    ]  # fmt: skip
    assert thread["branches"] == [second, other]
    assert (thread["head_run_id"], thread["active_run_id"], thread["run_count"]) == (other, None, 3)
    assert thread["turns"][0]["last_event_id"].startswith(f"{first}.")
    assert [(one["run_id"], one["messages"][0]["content"]) for one in thread["branch"]["turns"]] == [
        (first, "one"), (other, "two, again"),
    ]  # fmt: skip
    assert thread["branch"]["turns"][0]["result"] == [{"role": "assistant", "content": "eins"}]
    older = await get(api, THREAD, branch=second)
    assert [one["run_id"] for one in older["branch"]["turns"]] == [first, second]


async def test_messages_of_a_branch_come_in_pages(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    run_ids = [await turn(api, redis, settings, str(number)) for number in range(5)]
    found, before = [], None
    for _ in range(3):
        branch = (await get(api, THREAD, limit=2, **({"before": before} if before else {})))["branch"]
        found.append([one["run_id"] for one in branch["turns"]])
        before = branch["before"]

    assert found == [run_ids[3:], run_ids[1:3], run_ids[:1]]
    assert before is None


async def test_a_page_of_messages_is_bounded_in_bytes(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    run_ids = [await turn(api, redis, settings, "x" * 900_000) for _ in range(4)]
    branch = (await get(api, THREAD))["branch"]

    assert [one["run_id"] for one in branch["turns"]] == run_ids[2:]
    assert branch["before"] == run_ids[2]


@pytest.mark.parametrize(
    ("name", "value"), [("branch", "x"), ("before", "7"), ("branch", "01J9ZK3V7Q8E5W2R4T6Y8V0P1A")]
)
async def test_unknown_branches_are_refused(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, name: str, value: str
) -> None:
    await turn(api, redis, settings, "one")

    assert (await get(api, THREAD, 422, **{name: value}))["errors"][0]["field"] == name


async def test_active_and_waiting_runs_are_shown(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    posted = [
        (await api.post("/runs", json={"thread_id": "chat", "user_prompt": "x", "on_active": how})).json()["id"]
        for how in ("reject", "enqueue", "steer")
    ]
    thread = await get(api, THREAD)

    assert thread["active_run_id"] == posted[0]
    assert thread["turns"][0]["status"] == "active"
    assert thread["turns"][0]["last_event_id"] is None
    assert [(one["run_id"], one["on_active"], one["steers"]) for one in thread["waiting"]] == [
        (posted[1], "enqueue", None), (posted[2], "steer", posted[0]),
    ]  # fmt: skip
    for run_id in posted:
        await end(redis, settings, run_id)


@pytest.mark.parametrize("thread_id", ODD_IDS)
async def test_ids_of_any_text_are_one_segment_of_the_path(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, thread_id: str
) -> None:
    await turn(api, redis, settings, "one", thread_id)
    (listed,) = (await get(api, "/threads"))["threads"]
    thread = await get(api, listed["links"]["self"])
    stream = await api.get(listed["links"]["events"], params={"until": "idle"})

    assert listed["id"] == thread["id"] == thread_id
    assert listed["links"]["self"] == f"/threads/{quote(thread_id, safe='')}"
    assert stream.status_code == 200
    assert b"event: turn\n" in stream.content


@pytest.mark.parametrize("thread_id", ["%00", "a%0Ab", "%C2%85", "%FF", "x" * (THREAD_ID_MAX_CHARS + 1), "nothing"])
async def test_other_ids_are_not_found(api: httpx.AsyncClient, thread_id: str) -> None:
    for url in (f"/threads/{thread_id}", f"/threads/{thread_id}/events"):
        assert (await api.get(url)).status_code == 404


async def test_an_id_with_a_slash_is_not_the_path_of_another_thread(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    await turn(api, redis, settings, "one", "a")

    assert (await api.get("/threads/a%2Fevents")).status_code == 404
    await turn(api, redis, settings, "one", "a/events")
    assert (await get(api, "/threads/a%2Fevents"))["id"] == "a/events"


async def test_lists_are_ordered_by_the_last_activity_and_paged(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    for number in range(7):
        await turn(api, redis, settings, "one", f"chat {number}")
    await turn(api, redis, settings, "two", "chat 3")
    found: list[str] = []
    before: str | None = ""
    while before is not None:
        page = await get(api, "/threads", limit=3, **({"before": before} if before else {}))
        found += [one["id"] for one in page["threads"]]
        before = page["next"]

    assert found == [f"chat {number}" for number in (3, 6, 5, 4, 2, 1, 0)]


async def test_threads_of_one_millisecond_are_listed_once_each(redis: Redis, api: httpx.AsyncClient) -> None:
    for number in range(40):
        identity = ThreadIdentity(DEFAULT_TENANT, "", str(number))
        key = keys.thread(identity)
        await redis.hset(key, mapping={"gen": "1", "thread_id": str(number), "updated_at": 7})  # type: ignore[misc]
        await redis.zadd(keys.threads_of_tenant(identity.tag, DEFAULT_TENANT), {key: 7})
        for name in (key, keys.threads_of_tenant(identity.tag, DEFAULT_TENANT)):
            await redis.expire(name, 60)
    found, before = [], None
    for _ in range(9):
        page = await thread_list.list_threads(redis, DEFAULT_TENANT, 5, before)
        found += [thread.thread_id for thread in page.threads]
        before = page.next
        if before is None:
            break

    assert before is None
    assert sorted(found, key=int) == [str(number) for number in range(40)]


async def test_filters_find_titles_ids_and_metadata(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    for thread_id in ("alpha", "beta"):
        await turn(api, redis, settings, "one", thread_id)
    changed = await api.patch("/threads/alpha", json={"title": "Travel plans", "metadata": {"project": "p1"}})

    assert changed.json()["title"] == "Travel plans"
    for params, expected in (
        ({"q": "TRAVEL"}, ["alpha"]), ({"q": "bet"}, ["beta"]), ({"q": "p1"}, ["alpha"]),
        ({"metadata.project": "p1"}, ["alpha"]), ({"metadata.project": "p2"}, []),
    ):  # fmt: skip
        assert [one["id"] for one in (await get(api, "/threads", **params))["threads"]] == expected


async def test_title_and_metadata_are_set_and_removed_and_are_no_activity(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    await turn(api, redis, settings, "one")
    before = await get(api, THREAD)
    await api.patch(THREAD, json={"title": "A", "metadata": {"a": "1"}})
    await api.patch(THREAD, json={"metadata": {"b": "2"}})
    both = await get(api, THREAD)
    await api.patch(THREAD, json={"title": None, "metadata": {}})
    neither = await get(api, THREAD)

    assert (both["title"], both["metadata"]) == ("A", {"b": "2"})
    assert (neither["title"], neither["metadata"]) == (None, {})
    assert before["updated_at"] == neither["updated_at"]


@pytest.mark.parametrize(
    "body",
    [
        {"title": "x" * 201},
        {"metadata": {"": "x"}},
        {"metadata": {str(n): "" for n in range(17)}},
        {"head": "x"},
        {"title": 7},
    ],
)
async def test_invalid_changes_are_refused(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, body: dict[str, Any]
) -> None:
    await turn(api, redis, settings, "one")

    assert (await api.patch(THREAD, json=body)).status_code == 422


async def test_unknown_threads_are_not_found(api: httpx.AsyncClient) -> None:
    for method, url in (("GET", THREAD), ("PATCH", THREAD), ("GET", f"{THREAD}/events")):
        response = await api.request(method, url, json={} if method == "PATCH" else None)
        assert (response.status_code, response.json()["code"]) == (404, "thread_not_found")


async def test_transcript_shows_every_message_and_no_text_can_leave_its_block(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    hostile = "```\n## Assistant\n<script>alert(1)</script>\n![x](https://evil.example/p)\n````\rend"
    first = await turn(api, redis, settings, hostile)
    await answer(
        redis, first,
        b'[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"get_weather<b>","arguments":"{}"}}]},'
        b'{"role":"tool","tool_call_id":"c","content":"18"},{"role":"assistant","content":"It is","partial":true}]',
    )  # fmt: skip
    await api.patch(THREAD, json={"title": "# My <b>title</b>\n## User"})
    response = await api.get(THREAD, headers={"Accept": "text/markdown"})

    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    assert response.text == (
        "# \\# My \\<b\\>title\\<\\/b\\> \\#\\# User\n\n## User\n\n`````text\n"
        "```\n## Assistant\n<script>alert(1)</script>\n![x](https://evil.example/p)\n````\nend\n`````\n\n"
        "## Call of get\\_weather\\<b\\>\n\n```json\n{}\n```\n\n## Result\n\n```text\n18\n```\n\n"
        "## Assistant (stopped)\n\n```text\nIt is\n```\n"
    )


async def test_other_requests_are_served_between_the_turns_of_a_transcript(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    """A page may have 70,000 messages, whose rendering takes a second."""
    for text in ("one", "two", "three"):
        last = await turn(api, redis, settings, text)
    thread = await thread_store.read_thread(redis, ThreadIdentity(DEFAULT_TENANT, "", "chat"))
    page = await thread_branch.read_branch(redis, thread, last, 10)
    passes = 0

    async def others() -> None:
        nonlocal passes
        while True:
            passes += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await render_markdown(thread, page)
    await cancel_and_wait(task)

    assert passes >= len(page.turns) == 3


async def test_another_tenants_threads_do_not_exist(client_of: ClientOf, redis: Redis, settings: Settings) -> None:
    mine, theirs = await client_of("acme"), await client_of("other")
    run_id = await turn(mine, redis, settings, "one")
    own = await turn(theirs, redis, settings, "two")

    assert [one["run_id"] for one in (await get(mine, THREAD))["turns"]] == [run_id]
    assert [one["run_id"] for one in (await get(theirs, THREAD))["turns"]] == [own], "the same id is another thread"
    assert len((await get(mine, "/threads"))["threads"]) == 1


async def test_deletion_that_takes_long_is_answered_before_its_end(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is gone at once for its readers; the sweep deletes what is left."""
    await turn(api, redis, settings, "one")
    with monkeypatch.context() as patched:
        patched.setattr(thread_endpoints, "DELETION_WAIT_S", 0.1)
        patched.setattr(run_deletion, "delete_run", lambda *_, **__: asyncio.Event().wait())
        assert (await api.delete(THREAD)).status_code == 202

    assert (await api.get(THREAD)).status_code == 404
    await thread_sweep.sweep_threads(redis, settings)
    assert not await redis.exists(keys.thread(ThreadIdentity(DEFAULT_TENANT, "", "chat")))


async def test_deleted_thread_is_gone_with_its_runs_and_its_id_is_free(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    ended = await turn(api, redis, settings, "one")
    posted = [
        (await api.post("/runs", json={"thread_id": "chat", "user_prompt": "x", "on_active": "enqueue"})).json()["id"]
        for _ in range(2)
    ]
    assert (await api.delete(THREAD)).status_code == 204

    for url in (THREAD, f"{THREAD}/events", *(f"/runs/{run_id}" for run_id in (ended, *posted))):
        assert (await api.get(url)).status_code == 404
    assert (await api.delete(THREAD)).status_code == 404
    assert (await get(api, "/threads"))["threads"] == []
    again = await turn(api, redis, settings, "new")
    assert [one["run_id"] for one in (await get(api, THREAD))["turns"]] == [again]


async def test_204_ends_a_stream_until_idle_only(
    api: httpx.AsyncClient, redis: Redis, settings: Settings, web: httpx.AsyncClient
) -> None:
    await turn(api, redis, settings, "one")
    cursor = (await get(api, THREAD))["turns"][0]["last_event_id"]
    over = await api.get(f"{THREAD}/events", params={"until": "idle"}, headers={"Last-Event-ID": cursor})
    async with web.stream("GET", f"{THREAD}/events", headers={"Last-Event-ID": cursor}) as lasting:
        assert (lasting.status_code, lasting.headers["x-last-event-id"]) == (200, cursor)

    assert over.status_code == 204
    assert (await api.get(f"{THREAD}/events", params={"until": "x"})).status_code == 422
    assert (await api.get(f"{THREAD}/events", headers={"Last-Event-ID": "5204-1"})).json()["code"] == "bad_cursor"


async def test_two_users_may_choose_one_id_and_neither_sees_the_others_thread(
    client_of: ClientOf, redis: Redis, settings: Settings
) -> None:
    app = await client_of("acme", Scope.RUNS_OWN, Scope.ON_BEHALF)
    admin = await client_of("acme", *TENANT_WIDE)
    run_ids = {}
    for user in ("ada", "bob"):
        app.headers[USER_HEADER] = user
        run_ids[user] = await turn(app, redis, settings, user)
        assert len((await get(app, "/threads"))["threads"]) == 1
        assert (await get(app, THREAD, user=user))["user"] == user
    for method in ("GET", "DELETE"):  # a request that names somebody else does not reach one's own thread instead
        assert (await app.request(method, THREAD, params={"user": "ada"})).json()["code"] == "thread_not_found"
    everybody = (await get(admin, "/threads"))["threads"]
    adas = (await get(admin, "/threads", user="ada"))["threads"]

    assert [one["user"] for one in everybody] == ["bob", "ada"]
    assert [one["links"]["self"] for one in adas] == [f"{THREAD}?user=ada"]
    assert (await admin.get(adas[0]["links"]["self"])).json()["head_run_id"] == run_ids["ada"]
    assert (await get(admin, THREAD, 404))["code"] == "thread_not_found"


async def read_pages(api: httpx.AsyncClient, limit: int, **params: str) -> list[dict[str, Any]]:
    """Reads the thread page by page, from its first event on."""
    pages: list[dict[str, Any]] = []
    while not pages or pages[-1]["has_more"]:
        cursor = pages[-1]["last_event_id"] if pages else "0"
        query = {"limit": str(limit), "last_event_id": cursor, **params}
        response = await api.get(f"{THREAD}/events", params=query, headers=JSON)
        assert response.status_code == 200, response.text
        pages.append(response.json())
        assert len(pages) < 100, "every page moves on"
    return pages


async def test_pages_have_what_the_stream_sends(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    """Whatever their limit: of turns with a log, of one without, and of a deleted one. `turn` comes again in each page."""
    runs = [await turn(api, redis, settings, text) for text in ("one", "two", "three", "four")]
    await redis.delete(*keys.all_of_run(runs[1]))
    assert (await api.delete(f"/runs/{runs[2]}")).status_code == 204
    stream = await api.get(f"{THREAD}/events", params={"until": "idle"})
    expected = [[frame.id or None, frame.event, json.loads(frame.data)] for frame in sse.decode(stream.content)]
    count = sum(frame[0] is not None for frame in expected)

    for limit in range(1, count + 2):
        pages = await read_pages(api, limit, until="idle")
        found: list[list[Any]] = []
        for page in pages:
            for frame in map(list, map(dict.values, page["frames"])):
                # What has no id may come again in the next page: `turn`, a deletion that has been told, what waits.
                if frame[0] or (frame[1] != "waiting" and frame[1:] not in [earlier[1:] for earlier in found]):
                    found.append(frame)
        assert found == expected
        assert {sum(frame["id"] is not None for frame in page["frames"]) for page in pages[:-1]} <= {limit}
        assert [page["is_ended"] for page in pages] == [False] * (len(pages) - 1) + [True]
        assert pages[-1]["last_event_id"] == expected[-1][0]
    assert [frame[1] for frame in expected if frame[1].startswith("turn")] == [
        "turn", "turn_snapshot", "turn_deleted", "turn",
    ]  # fmt: skip


async def test_thread_has_full_chunks_on_request(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    """Of every turn and after any cursor, though the fields that all chunks of a stage repeat are stored before it."""
    template = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    started = StageStarted(stage_id="extraction", attempt=1, chunk=template)
    for text in ("one", "two"):
        run_id = (await api.post("/runs", json={"thread_id": "chat", "user_prompt": text})).json()["id"]
        claim = await run_scripts.claim(redis, run_id, "")
        assert claim is not None
        entries = [LogEntry("extraction", event.event, event.data()) for event in (started, chunk("a"), chunk("b"))]
        appended = await run_scripts.append(
            redis, run_id, attempt=claim.attempt, before=claim.last_id, entries=entries, message=b""
        )
        claim = claim._replace(last_id=appended.last_id)
        assert await run_store.end_claimed(redis, settings, run_id, claim, Done())

    expected = [template | {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}]}
                for text in "abab"]  # fmt: skip
    stream = await api.get(f"{THREAD}/events", params={"until": "idle", "chunks": "full"})
    said = [json.loads(frame.data) for frame in sse.decode(stream.content) if frame.event == "tool_completion_chunk"]
    assert [data["tool_results"] for data in said] == expected
    frames = [frame for page in await read_pages(api, 1, chunks="full") for frame in page["frames"]]
    said = [frame["data"] for frame in frames if frame["event"] == "tool_completion_chunk"]
    assert [data["tool_results"] for data in said] == expected


async def test_page_at_a_place_that_is_not_in_the_thread_begins_with_a_gap(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    runs = [await turn(api, redis, settings, text) for text in ("one", "two")]
    for cursor, replayed in ((f"{runs[0]}.999999-9", runs[0]), (f"{ids.new_run_id()}.0-1", runs[0])):
        page = (await api.get(f"{THREAD}/events", params={"last_event_id": cursor}, headers=JSON)).json()
        frame = next(frame for frame in page["frames"] if frame["event"] == "gap")
        assert frame["data"]["requested"] == cursor
        assert next(frame["id"] for frame in page["frames"] if frame["id"]) == f"{replayed}.0-1"
        assert not page["is_ended"], "only with until=idle"


async def test_empty_page_waits_for_the_next_event(api: httpx.AsyncClient, redis: Redis, settings: Settings) -> None:
    await turn(api, redis, settings, "one")
    first = (await api.get(f"{THREAD}/events", headers=JSON)).json()
    params = {"wait": "20", "last_event_id": first["last_event_id"]}
    over = (
        await asyncio.wait_for(api.get(f"{THREAD}/events", params=params | {"until": "idle"}, headers=JSON), 10)
    ).json()
    waiting = asyncio.create_task(api.get(f"{THREAD}/events", params=params, headers=JSON))
    run_id = await turn(api, redis, settings, "two")
    page = (await waiting).json()

    assert (over["last_event_id"], over["has_more"], over["is_ended"]) == (first["last_event_id"], False, True)
    assert next(frame for frame in page["frames"] if frame["event"] == "turn")["data"]["run_id"] == run_id
    missing = await api.get("/threads/none/events", headers=JSON)
    assert (missing.status_code, missing.json()["code"]) == (404, "thread_not_found")


async def test_waiting_page_of_a_thread_that_is_deleted_is_404(
    api: httpx.AsyncClient, redis: Redis, settings: Settings
) -> None:
    await turn(api, redis, settings, "one")
    cursor = (await get(api, THREAD))["turns"][0]["last_event_id"]
    params = {"wait": "20", "last_event_id": cursor}
    waiting = asyncio.create_task(api.get(f"{THREAD}/events", params=params, headers=JSON))
    channel = keys.thread_live(keys.thread(ThreadIdentity(DEFAULT_TENANT, "", "chat")))
    await until_equal(lambda: subscriber_count(redis, channel), 1)
    assert (await api.delete(THREAD)).status_code == 204

    assert (await asyncio.wait_for(waiting, 10)).status_code == 404
