"""The page at `/` in a real browser, against the whole system as real processes.

What the real system cannot be made to send (a gap, a hole, a proxy's 502) is answered by
`served`, in the gateway's place; all else is the system's own.
"""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.async_api import Page, Request, Route, expect

from stagebus.shared.domain.tenants import TENANT_WIDE
from stagebus.shared.store import api_keys
from tests.browser.conftest import OpenPage
from tests.support.proxy import Proxy
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import System

# One event loop for all tests, as they share the browser.
pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

END_MS = 30_000
PHONE = {"width": 390, "height": 844}

WEATHER = "What is the weather in Paris and in Tokyo?"
# Slow enough that every test acts in the middle of the run.
SLOW = "demo:delay_ms=60"
ENDLESS = "demo:delay_ms=20,endless"
# Its tool calls have results, and its answer has no end, so every test acts in the middle of it.
TALKATIVE = {"user_prompt": WEATHER, "model": {"extraction": "demo:delay_ms=0", "synthesis": ENDLESS}}
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> & <script>document.title='owned'</script>"

FAKE_RUN = "01J00000000000000000000000"
Frame = tuple[str, str, dict[str, Any]]


# --- steps -------------------------------------------------------------------


async def start(page: Page, prompt: str, model: str = "") -> str:
    """Starts a run through the form and returns its id."""
    await page.goto("/")
    if model:
        await page.get_by_text("Options").click()
        await page.locator("#model").fill(model)
    await page.locator("#prompt").fill(prompt)
    await page.locator("#start").click()
    await expect(page).to_have_url(re.compile(r"\?run=\w+$"))
    return parse_qs(urlsplit(page.url).query)["run"][0]


async def wait_for_end(page: Page, status: str = "succeeded") -> None:
    """Waits until the page shows that the run has ended with this status."""
    await expect(page.locator("body")).to_have_attribute("data-run-status", status, timeout=END_MS)
    await expect(page.locator("body")).to_have_attribute("data-connection", "ended")


async def wait_for_text(page: Page, chars: int, stage: str = "synthesis") -> str:
    """Waits for so many characters of the stage's answer while the run still runs; returns the text."""
    # Before that, an extraction's text is the answer as long as it calls no tool.
    await expect(page.locator(f"[data-stage={stage}]")).to_be_visible(timeout=END_MS)
    text = page.locator("#answer")
    await expect(text).to_have_text(re.compile(rf"[\s\S]{{{chars}}}"), timeout=END_MS)
    assert await page.locator("body").get_attribute("data-run-status") == "running"
    return await text.text_content() or ""


async def answer(page: Page) -> str:
    return await page.locator("#answer").text_content() or ""


async def connection_states(page: Page) -> list[str]:
    """Returns the recorded states without `replaying`, which depends on how much was missed."""
    return [state for state in await page.evaluate("() => window.connectionStates") if state != "replaying"]


async def fetch_run(stagebus_url: str, run_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=stagebus_url) as client:
        reply = await client.get(f"/runs/{run_id}")
    return dict(reply.raise_for_status().json())


async def result_text(stagebus_url: str, run_id: str) -> str:
    """Returns the run's text from its record, without its stream."""
    return str((await fetch_run(stagebus_url, run_id))["result"]["text"])


async def logged_text(stagebus_url: str, run_id: str) -> str:
    """Returns the answer of an ended run as StrictClient receives it."""
    return (await StrictClient([stagebus_url], run_id).follow()).text("synthesis")


def chunk(event_id: str, text: str, stage_id: str = "synthesis") -> Frame:
    choice = {"index": 0, "delta": {"content": text}}
    return event_id, "tool_completion_chunk", {"stage_id": stage_id, "tool_results": {"choices": [choice]}}


DONE: tuple[str, dict[str, Any]] = ("done", {"stage_id": "run", "usage": {}})


def stream(frames: Iterable[Frame]) -> dict[str, Any]:
    """Builds a response with these frames."""
    lines = [f"{f'id: {i}' if i else ':'}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for i, name, data in frames]
    return {"content_type": "text/event-stream", "body": "retry: 50\n\n" + "".join(lines)}


async def serve(page: Page, *answers: dict[str, Any]) -> list[Request]:
    """Serves these responses for the fake run's streams, the last one repeatedly; returns the list of requests."""
    requests: list[Request] = []

    async def answer_stream(route: Route) -> None:
        requests.append(route.request)
        await route.fulfill(**answers[min(len(requests), len(answers)) - 1])

    async def answer_record(route: Route) -> None:
        await route.fulfill(json={"id": FAKE_RUN, "status": "running", "prompt": HOSTILE})

    await page.route(f"**/runs/{FAKE_RUN}/events*", answer_stream)
    await page.route(f"**/runs/{FAKE_RUN}", answer_record)
    return requests


def cursor_of(request: Request) -> str | None:
    return request.headers.get("last-event-id")


# --- a run -------------------------------------------------------------------


async def test_run_shows_its_stages_tool_cards_and_answer(page: Page, stagebus_url: str) -> None:
    """Shows stages with their states, a card per call with arguments and result, and the answer as the API has it.

    All of it comes from the gateway.
    """
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    run_id = await start(page, WEATHER)
    await wait_for_end(page)

    stages = page.locator("[data-stage]")
    assert [await stage.get_attribute("data-stage") for stage in await stages.all()] == [
        "extraction", "tools", "synthesis",
    ]  # fmt: skip
    for stage in await stages.all():
        await expect(stage).to_have_attribute("data-state", "done")
    cards = page.locator("[data-call-id]")
    await expect(cards).to_have_count(2)
    for card, place in zip(await cards.all(), ("Paris", "Tokyo"), strict=True):
        await expect(card).to_have_attribute("data-state", "done")
        await expect(card.get_by_label("Arguments")).to_contain_text(place)
        await expect(card.get_by_label("Result")).to_contain_text(place)
    assert await answer(page) == await result_text(stagebus_url, run_id)
    await expect(page.locator("#facts")).to_contain_text((await fetch_run(stagebus_url, run_id))["last_event_id"])
    await expect(page.locator("#usage")).to_contain_text("tokens")
    await expect(page.locator("#recents-list [aria-current]")).to_contain_text(WEATHER)
    assert all(url.startswith(f"{stagebus_url}/") for url in urls)


async def test_answer_without_tools_is_shown_once(page: Page, stagebus_url: str) -> None:
    """The extraction's text is the answer."""
    run_id = await start(page, "Say hello.")
    await wait_for_end(page)

    text = await answer(page)
    assert text == await result_text(stagebus_url, run_id)
    await expect(page.locator("[data-stage]")).to_have_count(1)
    await expect(page.locator("[data-stage]")).not_to_contain_text(text)


async def test_run_without_synthesis_ends_with_the_tools(page: Page) -> None:
    await page.goto("/")
    await page.locator("#prompt").fill(WEATHER)
    await page.get_by_label("Write an answer").uncheck()
    await page.locator("#start").click()
    await wait_for_end(page)

    await expect(page.locator("[data-call-id]")).to_have_count(2)
    await expect(page.locator("[data-stage=synthesis]")).to_have_count(0)
    await expect(page.locator("#answer")).to_be_hidden()


async def test_page_works_with_the_keyboard_alone(page: Page) -> None:
    """The prompt has the focus, Shift+Enter inserts a line, Enter starts the run, Tab reaches Cancel."""
    await page.goto("/")
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    assert await page.locator("#prompt").input_value() == "one\ntwo"
    await page.get_by_text("Options").click()
    await page.locator("#model").fill(ENDLESS)
    await page.locator("#prompt").press("Control+Enter")
    await expect(page.locator("#cancel")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.locator("#cancel")).to_be_focused()
    await page.keyboard.press("Enter")

    await wait_for_end(page, "cancelled")


async def test_cancel_keeps_the_text_so_far(page: Page, stagebus_url: str) -> None:
    run_id = await start(page, "Say hello.", ENDLESS)
    before = await wait_for_text(page, 20, "extraction")
    await expect(page.locator("#answer > p")).not_to_have_count(0)  # a direct answer is rendered while it is written
    await page.locator("#cancel").click()
    await wait_for_end(page, "cancelled")

    assert (await answer(page)).startswith(before)
    took = page.locator("[data-stage=extraction] > .head > .time")
    seen = await took.text_content()
    await page.reload()
    await wait_for_end(page, "cancelled")
    assert seen == await took.text_content() != "", "the stage's time is in the log"
    assert (await fetch_run(stagebus_url, run_id))["status"] == "cancelled"
    await expect(page.locator("#cancel")).to_be_hidden()
    await expect(page.get_by_role("heading", name="Cancelled")).to_be_visible()


async def test_failed_run_shows_its_error(page: Page, stagebus_url: str) -> None:
    run_id = await start(page, "Say hello.", "demo:status=401")
    await wait_for_end(page, "failed")

    error = (await fetch_run(stagebus_url, run_id))["error"]["error"]
    await expect(page.locator("#end")).to_contain_text(error)
    await expect(page.locator("[data-stage=extraction]")).to_have_attribute("data-state", "failed")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
async def test_retry_is_shown_and_discarded_text_disappears(page: Page, stagebus_url: str, motion: Any) -> None:
    """The provider disconnects in the middle: the text starts again, and the stage's card says so."""
    await page.emulate_media(reduced_motion=motion)
    run_id = await start(page, f"Say hello, with motion {motion}.", "demo:delay_ms=10,cut_after=5,fail_times=1")
    await wait_for_end(page)

    notes = page.locator("[data-stage=extraction] [data-kind]")
    assert [await note.get_attribute("data-kind") for note in await notes.all()] == ["retry", "restart"]
    assert await answer(page) == await result_text(stagebus_url, run_id)
    await expect(page.locator(".discarded")).to_have_count(0)


# --- reloads and lost connections -------------------------------------------------------------


async def test_reloads_during_a_stream_lose_no_text(page: Page, stagebus_url: str) -> None:
    """After several reloads, the page has the same text as a client that stayed connected."""
    run_id = await post_run(stagebus_url, TALKATIVE)
    await page.goto(f"/?run={run_id}")
    for chars in (1, 10, 20, 30, 40):
        before = await wait_for_text(page, chars)
        await page.reload()
        await expect(page.locator("#run-prompt")).to_have_text(WEATHER)
        assert (await wait_for_text(page, len(before))).startswith(before)
    await page.locator("#cancel").click()
    await wait_for_end(page, "cancelled")

    assert await answer(page) == await logged_text(stagebus_url, run_id)
    await expect(page.locator("[data-call-id][data-state=done]")).to_have_count(2)


async def test_another_browser_shows_the_same_run(page: Page, open_page: OpenPage, stagebus_url: str) -> None:
    """One on a phone that opens the run in the middle, and one that opens it after its end."""
    run_id = await post_run(stagebus_url, TALKATIVE)
    await page.goto(f"/?run={run_id}")
    await wait_for_text(page, 10)
    phone = await open_page(viewport=PHONE)
    await phone.goto(page.url)
    await wait_for_text(phone, 10)
    await page.locator("#cancel").click()
    for watcher in (page, phone):
        await wait_for_end(watcher, "cancelled")
    late = await open_page()
    await late.goto(page.url)
    await wait_for_end(late, "cancelled")

    text = await logged_text(stagebus_url, run_id)
    stages = await page.locator("[data-stage]").all_inner_texts()
    for watcher in (page, phone, late):
        assert await answer(watcher) == text
        assert len(await watcher.locator("[data-stage]").all_inner_texts()) == len(stages)


@pytest.mark.faults
@pytest.mark.parametrize("is_killed", [False, True], ids=["SIGTERM", "SIGKILL"])
async def test_page_reconnects_after_a_gateway_restart(
    page: Page, stagebus_url: str, system: System, is_killed: bool
) -> None:
    """The page shows that the connection is lost, reconnects and continues."""
    run_id = await start(page, WEATHER, SLOW)
    before = await wait_for_text(page, 5)
    await system.restart_gateway(is_killed=is_killed)
    await wait_for_end(page)

    text = await answer(page)
    assert text.startswith(before)
    assert text == await result_text(stagebus_url, run_id)
    states = await connection_states(page)
    # On a slow machine the run ends before the gateway is back.
    assert [state for state in states[states.index("reconnecting") :] if state != "live"] == ["reconnecting", "ended"]


async def test_page_reconnects_when_the_network_is_back(page: Page, stagebus_url: str) -> None:
    """The page shows a countdown, reconnects without waiting for its backoff, and misses no text."""
    async with Proxy(urlsplit(stagebus_url).port or 0) as network:
        run_id = await post_run(stagebus_url, {"user_prompt": WEATHER, "model": SLOW})
        await page.add_init_script("Math.random = () => 0.999")  # the longest backoff
        await page.goto(f"http://127.0.0.1:{network.port}/?run={run_id}")
        before = await wait_for_text(page, 5)
        await page.context.set_offline(True)  # open connections stay open
        network.cut()
        connection = page.locator("#connection")
        await expect(connection).to_have_text("Reconnecting (3)", timeout=END_MS)
        assert (await answer(page)).startswith(before)
        await page.context.set_offline(False)
        # Without the network event, the next try is seconds away.
        await expect(connection).not_to_have_text(re.compile("Reconnecting"), timeout=2500)
        await wait_for_end(page)

    assert await answer(page) == await result_text(stagebus_url, run_id)
    await expect(page.locator("[data-call-id][data-state=done]")).to_have_count(2)


async def test_page_opened_while_the_gateway_is_away_recovers(page: Page) -> None:
    """It waits and then shows the whole run, including its prompt."""
    await page.route("**/runs/**", lambda route: route.fulfill(status=502, body="bad gateway"))
    await page.goto(f"/?run={FAKE_RUN}")
    await expect(page.locator("body")).to_have_attribute("data-connection", "reconnecting")
    await serve(page, stream([chunk("7-1", "Here."), ("7-2", *DONE)]))
    await wait_for_end(page)

    assert await answer(page) == "Here."
    await expect(page.locator("#run-prompt")).to_have_text(HOSTILE)


async def test_back_forward_and_list_follow_the_address(page: Page) -> None:
    """The address names the run; the browser's buttons and the list of recent runs change it."""
    first = await start(page, "Say hello.")
    await wait_for_end(page)
    first_answer = await answer(page)
    second = await start(page, WEATHER)
    await wait_for_end(page)

    await page.go_back()
    await expect(page.locator("#home")).to_be_visible()
    await page.locator(f"#recents-list [data-run-id='{first}']").click()
    await expect(page).to_have_url(re.compile(first))
    await wait_for_end(page)
    assert await answer(page) == first_answer
    await page.locator(f"#recents-list [data-run-id='{second}']").click()
    await wait_for_end(page)
    await page.go_back()
    await expect(page.locator("#answer")).to_have_text(first_answer)
    await page.go_forward()
    await expect(page.locator("[data-call-id]")).to_have_count(2)


async def test_long_replay_is_complete(page: Page, stagebus_url: str) -> None:
    """Thousands of events arrive together, as when a finished run is opened."""
    run_id = await start(page, "Say hello.", "demo:delay_ms=0,tokens=4000")
    await wait_for_end(page)
    await page.reload()
    await wait_for_end(page)

    assert await answer(page) == await result_text(stagebus_url, run_id)


async def test_page_follows_the_text_until_the_reader_scrolls_up(page: Page) -> None:
    await page.set_viewport_size({"width": 800, "height": 400})
    await start(page, "Say hello.", "demo:delay_ms=5,endless")
    latest = page.locator("#latest")
    below = "() => document.documentElement.scrollHeight - innerHeight - scrollY"
    await wait_for_text(page, 1500, "extraction")
    assert await page.evaluate(below) < 50
    await page.mouse.move(400, 300)
    await page.mouse.wheel(0, -300)
    await expect(latest).to_be_visible()
    top = await page.evaluate("() => scrollY")
    text = await page.locator("#answer").text_content() or ""
    await wait_for_text(page, len(text) + 300, "extraction")
    assert await page.evaluate("() => scrollY") == top
    await latest.click()
    await expect(latest).to_be_hidden()
    assert await page.evaluate(below) < 50
    await page.locator("#cancel").click()
    await wait_for_end(page, "cancelled")


async def test_watching_many_runs_leaks_no_memory(page: Page) -> None:
    """Neither DOM elements nor memory of earlier runs remain."""
    text = [chunk(f"7-{n}", f"word {n} ") for n in range(1, 1501)]
    await serve(page, stream([*text, ("7-1501", *DONE)]))
    devtools = await page.context.new_cdp_session(page)

    async def watch(times: int) -> tuple[int, int]:
        for _ in range(times):
            for address in ("/", f"/?run={FAKE_RUN}"):
                await page.evaluate("(to) => history.pushState(null, '', to)", address)
                await page.evaluate("() => dispatchEvent(new PopStateEvent('popstate'))")
            await wait_for_end(page)
        for _ in range(2):  # the first collection frees what the second can collect
            await devtools.send("HeapProfiler.collectGarbage")
        nodes = (await devtools.send("Memory.getDOMCounters"))["nodes"]
        return nodes, (await devtools.send("Runtime.getHeapUsage"))["usedSize"]

    await page.goto("/")
    nodes_before, bytes_before = await watch(6)  # until the engine has compiled what it optimises
    nodes, used_bytes = await watch(6)

    assert nodes <= nodes_before + 20, "only the list of runs may grow"
    assert used_bytes < bytes_before + 500_000, "less than the memory of one such run"


# --- errors -----------------------------------------------------------


async def test_unknown_run_is_reported(page: Page) -> None:
    await page.goto(f"/?run={FAKE_RUN}")

    await expect(page.get_by_role("heading", name="Run not found")).to_be_visible()
    await expect(page.locator("body")).to_have_attribute("data-connection", "ended")
    await page.get_by_role("link", name="Start a new run").click()
    await expect(page.locator("#prompt")).to_be_focused()


async def test_form_errors_appear_at_their_field(page: Page) -> None:
    """The gateway's 422, and the page's own error for an empty prompt."""
    await page.goto("/")
    await page.locator("#start").click()
    await expect(page.locator("#prompt-error")).not_to_be_empty()
    await expect(page.locator("#prompt")).to_be_focused()
    await page.get_by_text("Options").click()
    await page.locator("#model").fill("x" * 100_000)
    await page.get_by_text("Options").click()
    await page.locator("#prompt").fill("Hi")
    await page.locator("#start").click()

    await expect(page.locator("#model-error")).not_to_be_empty()
    await expect(page.locator("#model")).to_be_focused()
    await expect(page.locator("#model")).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#prompt-error")).to_be_empty()


async def test_post_with_a_lost_answer_creates_one_run(page: Page, stagebus_url: str) -> None:
    """The page repeats the POST with the same Idempotency-Key."""
    keys: list[str] = []
    made: list[str] = []

    async def lose_two(route: Route) -> None:
        if route.request.method != "POST":
            await route.continue_()
            return
        keys.append(route.request.headers["idempotency-key"])
        reply = await route.fetch()
        made.append((await reply.json())["id"])
        await (route.fulfill(response=reply) if len(keys) > 2 else route.abort())

    await page.route("**/runs", lose_two)
    run_id = await start(page, "Say hello.")
    await wait_for_end(page)

    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert set(made) == {run_id}


async def test_page_retries_after_a_502_of_a_proxy(page: Page) -> None:
    requests = await serve(
        page,
        stream([chunk("7-1", "Half "), chunk("7-2", "an ")]),
        {"status": 502, "body": "bad gateway"},
        {"status": 502, "body": "bad gateway"},
        stream([chunk("7-3", "answer."), ("7-4", *DONE)]),
    )
    await page.goto(f"/?run={FAKE_RUN}")
    await wait_for_end(page)

    assert await answer(page) == "Half an answer."
    assert await connection_states(page) == ["idle", "connecting", "live", "reconnecting", "live", "ended"]
    assert [cursor_of(request) for request in requests] == [None, "7-2", "7-2", "7-2"]


async def test_missing_event_is_fetched_and_duplicate_dropped(page: Page) -> None:
    requests = await serve(
        page,
        stream([chunk("7-1", "one "), chunk("7-1", "one "), chunk("7-3", "three")]),
        stream([chunk("7-1", "one "), chunk("7-2", "two "), chunk("7-3", "three"), ("7-4", *DONE)]),
    )
    await page.goto(f"/?run={FAKE_RUN}")
    await wait_for_end(page)

    assert await answer(page) == "one two three"
    assert cursor_of(requests[1]) == "7-1"


async def test_gap_is_shown_and_the_log_is_read_again(page: Page) -> None:
    gap = {"requested": "7-3", "earliest": "7-1", "latest": "9-2"}
    await serve(
        page,
        stream([chunk("7-1", "kept "), chunk("7-2", "lost "), chunk("7-3", "lost")]),
        stream([("", "gap", gap), chunk("7-1", "kept "), chunk("9-2", "anew"), ("9-3", *DONE)]),
    )
    await page.goto(f"/?run={FAKE_RUN}")
    await wait_for_end(page)

    assert await answer(page) == "kept anew"
    await expect(page.locator("#lost")).to_be_visible()
    states = await connection_states(page)
    assert states == ["idle", "connecting", "live", "reconnecting", "live", "gap", "live", "ended"]


async def test_foreign_content_is_shown_as_text(page: Page) -> None:
    """Content of a model, a tool, a provider or a person is never interpreted as HTML."""
    call = {"call_id": HOSTILE, "name": HOSTILE}
    await serve(
        page,
        stream(
            [
                ("7-1", "run_queued", {"stage_id": "run", "run_id": HOSTILE, "model": HOSTILE}),
                ("7-2", "retry_scheduled",
                 {"stage_id": "run", "retry_of": "tools", "retry": 1, "backoff_s": 1, "reason": HOSTILE}),
                ("7-3", "tool_call", {"stage_id": "tools", **call, "arguments": HOSTILE}),
                ("7-4", "tool_result", {"stage_id": "tools", **call, "content": json.dumps({HOSTILE: HOSTILE})}),
                ("7-5", "stage_started", {"stage_id": HOSTILE}),
                chunk("7-6", HOSTILE),
                ("7-7", "tool_completion_chunk",
                 {"stage_id": "synthesis", "tool_results": {"choices": [{"delta": {"reasoning": HOSTILE}}]}}),
                ("7-8", "tool_progress", {"stage_id": "tools", "call_id": "other", "message": HOSTILE, "fraction": 0.5}),
                ("7-9", "message_added", {"stage_id": "run", "run_id": HOSTILE, "before": "synthesis",
                                          "messages": [{"role": "user", "content": HOSTILE}]}),
                ("7-10", "error", {"stage_id": "run", "error": HOSTILE, "code": HOSTILE, "failed_stage": HOSTILE}),
            ]
        ),
    )  # fmt: skip
    await page.goto(f"/?run={FAKE_RUN}")
    await wait_for_end(page, "failed")

    assert await answer(page) == HOSTILE
    for place in (
        "#run-prompt",
        "#run-model",
        "#end-text",
        ".call:first-child .arguments",
        ".call:last-child .progress",
        "[data-kind=retry]",
        "[data-stage=synthesis] [data-kind=message]",
        "[data-stage=synthesis] .reasoning",
    ):
        await expect(page.locator(place)).to_contain_text(HOSTILE)
    await expect(page.locator("main :is(img, b, script)")).to_have_count(0)
    assert "owned" not in (await page.title()).replace(HOSTILE[:60], "")


async def test_hostile_prompt_is_shown_as_text(page: Page, open_page: OpenPage) -> None:
    """In the run and in the list of runs, through the real system."""
    await start(page, HOSTILE)
    await wait_for_end(page)
    other = await open_page()
    await other.goto(page.url)
    await wait_for_end(other)

    for watcher in (page, other):
        await expect(watcher.locator("#run-prompt")).to_have_text(HOSTILE)
        await expect(watcher.locator("#recents-list [aria-current]")).to_contain_text(HOSTILE)
        await expect(watcher.locator("main :is(img, b, script), aside :is(img, b, script)")).to_have_count(0)


# --- layout --------------------------------------------------------


async def test_page_fits_a_phone(open_page: OpenPage) -> None:
    """Nothing is wider than the screen: the form, the drawer, a run with long words, a page without a connection."""
    phone = await open_page(viewport=PHONE)
    too_wide = "() => document.documentElement.scrollWidth - innerWidth"
    await phone.goto("/")
    assert await phone.evaluate(too_wide) <= 0
    await expect(phone.locator("#recents")).to_be_hidden()
    await phone.get_by_role("button", name="Runs", exact=True).click()
    await expect(phone.locator("#recents")).to_be_visible()
    await phone.keyboard.press("Escape")
    await expect(phone.locator("#recents")).to_be_hidden()
    await expect(phone.get_by_role("button", name="Runs", exact=True)).to_be_focused()
    await start(phone, f"{'W' * 300} in Paris and in Tokyo")
    await wait_for_end(phone)
    assert await phone.evaluate(too_wide) <= 0
    await serve(phone, stream([chunk("7-1", "Half an answer")]), {"status": 502, "body": "bad gateway"})
    await phone.goto(f"/?run={FAKE_RUN}")
    await expect(phone.locator("#connection")).to_have_text(re.compile("Reconnecting"))
    assert await phone.evaluate(too_wide) <= 0
    await phone.set_viewport_size({"width": 320, "height": 568})
    assert await phone.evaluate(too_wide) <= 0


async def test_page_works_without_the_list(page: Page, stagebus_url: str) -> None:
    await page.route("**/runs?*", lambda route: route.abort())
    run_id = await start(page, "Say hello.")
    await wait_for_end(page)

    assert await answer(page) == await result_text(stagebus_url, run_id)
    await expect(page.locator("#recents-note")).not_to_be_empty()


# --- authentication --------------------------------------------------------------


async def test_page_asks_for_a_key_and_shares_a_run_without_it(system: System, open_page: OpenPage) -> None:
    system.set_env("STAGEBUS_AUTH", "keys")
    try:
        url = await system.add_gateway().ready()
    finally:
        system.set_env("STAGEBUS_AUTH", "open")
    _, key = await api_keys.create(system.redis, tenant="acme", scopes=TENANT_WIDE)
    page = await open_page()
    await page.goto(url)
    await expect(page.locator("#sign-in")).to_be_visible()
    await expect(page.locator("#home")).to_be_hidden()
    await page.locator("#sign-in-button").focus()
    async with page.expect_response("**/runs?*"):  # the list asks again and is refused again
        await page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page.locator("#recents-note")).to_have_text("Sign in to see them.")
    await expect(page.locator("#sign-in-button")).to_be_focused()
    await page.locator("#key").fill("sbk_wrong")
    await page.locator("#sign-in-button").click()
    await expect(page.locator("#sign-in-error")).to_contain_text("unknown, revoked or expired")
    await page.locator("#key").fill(key)
    async with page.expect_navigation():
        await page.locator("#sign-in-button").click()
    await expect(page.locator("#sign-in")).to_be_hidden()
    await page.locator("#prompt").fill(WEATHER)
    await page.locator("#start").click()
    await wait_for_end(page)
    assert await page.evaluate("document.cookie") == "", "the session cookie is HttpOnly"
    await page.locator("#share").click()
    await expect(page.locator("#share-link")).to_be_visible()
    link = await page.locator("#share-url").input_value()

    guest = await open_page()
    asked: list[str] = []
    guest.on("request", lambda request: asked.append(request.headers.get("referer", "")))
    await guest.goto(link)
    await wait_for_end(guest)
    await expect(guest.locator("#run-prompt")).to_have_text(WEATHER)
    await expect(guest.locator("#sign-in")).to_be_hidden()
    await guest.locator("#events > summary").click()
    await guest.locator(".event").first.click()
    assert await guest.locator(":is(header, main, aside) :is(a[href], button, input, select, textarea)").locator("visible=true").evaluate_all(
        "all => all.map((one) => one.dataset.copy ?? one.id)"
    ) == ["events-filter", "json", "curl"], "a guest has no other controls"  # fmt: skip
    assert not any("ticket" in referer for referer in asked)

    await page.locator("#share-revoke").click()
    await expect(page.locator("#share-link")).to_be_hidden()
    await guest.reload()
    await expect(guest.locator("body")).to_contain_text("this ticket is expired or revoked")

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("#sign-in")).to_be_visible()
    await expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
