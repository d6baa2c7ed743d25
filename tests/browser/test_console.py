"""The page: approvals, the list of runs, the event inspector, Markdown, the form's options, the system view."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.support.needs import skip_or_fail
from tests.support.strict_client import get_run, post_run

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

AXE = Path(__file__).parent.parent.parent / "clients/js/node_modules/axe-core/axe.min.js"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
END_MS = 30_000
PAY = {"user_prompt": 'call pay {"n": 3, "seconds": 0}', "tools": ["pay"]}
ASK = {"user_prompt": 'call ask_user {"question": "Which card shall it be?"}', "tools": ["ask_user"]}
LOCATE = {
    "user_prompt": 'call locate {"what": "me"}',
    "tools": [{"type": "function", "function": {"name": "locate", "parameters": {"type": "object"}}}],
}
ENDLESS = "demo:delay_ms=20,endless"
MARKDOWN = """# Title

Some *emphasis*, `code <b>` and [a link](https://example.org/).

1. one
2. two
   - inner

> quoted

```js
let a = "<i>";
```

| a | b | a column with a long name | another column with a long name |
|---|---|---|---|
| 1 | 2 | wonderful | weather |
"""
USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200, "cost": {"amount": 0.0042, "currency": "EUR"},
}  # fmt: skip
HOSTILE = """<img src=x onerror="document.title='owned'">

[go](javascript:document.title='owned') ![pixel](https://evil.example/pixel.png) [data](data:text/html,<script>1</script>)

<script>document.title='owned'</script><iframe src="https://evil.example"></iframe>
"""


async def show(page: Page, stagebus_url: str, body: dict[str, Any]) -> str:
    """Creates a run, opens its page and returns its id."""
    run_id = await post_run(stagebus_url, body)
    await page.goto(f"/?run={run_id}")
    return run_id


async def wait_for_end(page: Page, status: str = "succeeded") -> None:
    await expect(page.locator("body")).to_have_attribute("data-run-status", status, timeout=END_MS)
    await expect(page.locator("body")).to_have_attribute("data-connection", "ended")


async def serve_text(page: Page, text: str) -> None:
    """Opens a run whose answer is this text, streamed in small pieces."""
    pieces = re.findall(r"[\s\S]{1,7}", text)
    chunks = [{"tool_results": {"choices": [{"delta": {"content": piece}}]}} for piece in pieces]
    await serve_events(page, *(("tool_completion_chunk", chunk) for chunk in chunks))


async def serve_events(page: Page, *events: tuple[str, dict[str, Any]]) -> None:
    """Opens a run with these events and a final `done`."""
    run_id = "01J00000000000000000000000"
    frames = [
        f"id: 7-{n}\nevent: {name}\ndata: {json.dumps({'stage_id': 'synthesis', **data})}\n\n"
        for n, (name, data) in enumerate((*events, ("done", {"usage": USAGE})), 1)
    ]
    await page.route(f"**/runs/{run_id}/events*", lambda route: route.fulfill(
        content_type="text/event-stream", body="".join(frames)
    ))  # fmt: skip
    await page.route(f"**/runs/{run_id}", lambda route: route.fulfill(json={"id": run_id, "prompt": "Hi"}))
    await page.goto(f"/?run={run_id}")
    await wait_for_end(page)


async def copied(page: Page, label: str) -> str:
    """Clicks a copy button; returns the text of the clipboard."""
    button = page.get_by_role("button", name=label)
    place = await button.get_attribute("data-copy")
    await button.click()
    await expect(page.locator(f"[data-copy={place}]")).to_have_text("Copied")
    return str(await page.evaluate("() => navigator.clipboard.readText()"))


async def axe_violations(page: Page) -> list[str]:
    """Returns the violations that axe-core finds with a desktop (light, dark) and a phone, as `rule: first element`."""
    if not AXE.exists():
        skip_or_fail("axe-core (npm)")
    await page.evaluate(AXE.read_text())
    found = []
    for size, scheme, options in (
        (DESKTOP, "light", {}),
        (DESKTOP, "dark", {"runOnly": ["color-contrast"]}),  # light and dark differ only in their colours
        (PHONE, "light", {}),
    ):
        await page.set_viewport_size(size)
        await page.emulate_media(color_scheme=scheme)
        # Only violations: serialising the passed checks takes longer than the checks.
        result = await page.evaluate("(options) => axe.run(options)", {**options, "resultTypes": ["violations"]})
        found += [f"{scheme}, {one['id']}: {one['nodes'][0]['html']}" for one in result["violations"]]
    return found


# --- decisions ---------------------------------------------------------------


async def test_approval_survives_a_reload_and_runs_the_call(page: Page, stagebus_url: str) -> None:
    """The call runs with the changed arguments. The numbers are larger than JavaScript's can be."""
    body = {**PAY, "user_prompt": 'call pay {"n": 9007199254740993, "seconds": 0}'}
    run_id = await show(page, stagebus_url, body)
    await expect(page.locator("#run-status")).to_contain_text("waiting for you")
    await expect(page.locator("[data-call-id] .arguments")).to_have_text('{ "n": 9007199254740993, "seconds": 0 }')
    await page.reload()
    await page.get_by_text("Change the arguments").click()
    await page.get_by_label("Arguments, as JSON").fill("[1]")
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".decide [role=alert]")).to_contain_text("JSON object")
    await page.get_by_label("Arguments, as JSON").fill('{"n": 4, "n": 5}')
    await page.get_by_role("button", name="Approve").click()
    await expect(page.locator(".decide [role=alert]")).to_contain_text('"n" occurs twice')
    await page.get_by_label("Arguments, as JSON").fill('{"n": 9007199254740995, "seconds": 0}')
    await page.get_by_role("button", name="Approve").click()
    await wait_for_end(page)

    card = page.locator("[data-call-id]")
    await expect(card.get_by_label("Result")).to_have_text("paid 9007199254740995")
    await expect(card.locator(".decided")).to_have_text("Approved, with other arguments.")
    await expect(page.locator(".decide")).to_have_count(0)
    assert (await get_run(stagebus_url, run_id))["status"] == "succeeded"


async def test_approval_shows_what_runs(page: Page) -> None:
    """All of it: keys that occur twice, controls that turn text around, and lines below the fold."""
    lines = ",".join(f'"line {n}": {n}' for n in range(60))
    arguments = f'{{"amount": 1, "amount": 1000000, "to": "\u202e\\u0061lice", {lines}}}'
    call = {"call_id": "c", "name": "pay\u202e", "arguments": arguments, "expires_at": 1893456000000}
    await serve_events(
        page, ("stage_started", {"stage_id": "tools"}), ("approval_required", {**call, "stage_id": "tools"})
    )

    card = page.locator("[data-call-id=c]")
    await expect(card.locator(".twice")).to_have_text('"amount" occurs twice; the last value counts.')
    await expect(card.locator("h3")).to_have_text(r"pay\u202e")
    shown = await card.locator(".arguments").inner_text()
    assert shown.startswith('{\n  "amount": 1,\n  "amount": 1000000,\n  "to": "\\u202ealice",\n')
    assert await card.locator(".arguments").evaluate("shown => shown.scrollHeight <= shown.clientHeight + 1")


async def test_denial_tells_the_model_the_reason(page: Page, stagebus_url: str) -> None:
    await show(page, stagebus_url, PAY)
    await page.get_by_label("Reason for a denial").fill("too much")
    await page.get_by_role("button", name="Deny").click()
    await wait_for_end(page)

    await expect(page.locator(".decided")).to_have_text("Denied: too much")
    await expect(page.locator("[data-call-id]").get_by_label("Result")).to_contain_text("too much")


async def test_run_is_cancelled_on_a_phone_after_a_question(open_page: OpenPage, stagebus_url: str) -> None:
    """The button of the list is large enough for a finger, and one tap on it cancels nothing."""
    run_id = await post_run(stagebus_url, {"user_prompt": "Tap me", "model": ENDLESS})
    phone = await open_page(viewport=PHONE, has_touch=True, is_mobile=True)
    await phone.goto("/")
    await phone.locator("#recents-toggle").tap()
    cancel = phone.locator(f"[data-cancel-id='{run_id}']")
    box = await cancel.bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 44
    for answer, status in (("Keep it running", "running"), ("Cancel the run", "cancelled")):
        await cancel.tap()
        await expect(phone.get_by_role("dialog")).to_contain_text("Tap me")
        await phone.get_by_role("button", name=answer).tap()
        await expect(phone.get_by_role("dialog")).to_have_count(0)
        await expect(phone.locator(f"[data-run-id='{run_id}']")).to_contain_text(status, timeout=10_000)


async def test_question_is_answered_on_a_phone(open_page: OpenPage, stagebus_url: str) -> None:
    phone = await open_page(viewport=PHONE)
    await show(phone, stagebus_url, ASK)
    await expect(phone.locator(".asked")).to_have_text("Which card shall it be?")
    tops = await phone.locator(".run-facts > :not([hidden])").evaluate_all(
        "all => all.filter((one) => one.offsetHeight).map((one) => one.getBoundingClientRect()).map(({ top, height }) => top + height / 2)"
    )
    assert max(tops) - min(tops) < 4, "the sticky facts are on one line"
    await phone.get_by_role("button", name="Answer").click()
    await expect(phone.locator(".decide [role=alert]")).to_contain_text("Write an answer first")
    await phone.get_by_label("Your answer").fill("the blue one")
    await phone.get_by_role("button", name="Answer").click()
    await wait_for_end(phone)

    await expect(phone.locator("[data-call-id]").get_by_label("Result")).to_have_text("the blue one")


async def test_shared_link_shows_an_approval_but_cannot_decide(
    page: Page, open_page: OpenPage, stagebus_url: str
) -> None:
    """The page's Share button creates the link."""
    await show(page, stagebus_url, PAY)
    await expect(page.locator(".decide")).to_be_visible()
    await page.get_by_role("button", name="Share").click()
    await expect(page.locator("#share-link")).to_be_visible()
    link = await page.get_by_label("Anyone with this link").input_value()
    guest = await open_page()
    await guest.goto(link)

    await expect(guest.locator(".decide")).to_contain_text("cannot decide")
    await expect(guest.locator(".decide button")).to_have_count(0)
    await expect(guest.get_by_role("button", name="Share")).to_have_count(0)
    await page.locator("#cancel").click()
    await wait_for_end(page, "cancelled")


async def test_late_share_link_is_not_shown_with_another_run(page: Page) -> None:
    """The reader opens the next run before the ticket of the first one arrives."""
    ticket: list[Route] = []

    async def hold(route: Route) -> None:
        ticket.append(route)

    await page.route("**/ticket", hold)
    await serve_text(page, "One run's answer.")
    async with page.expect_request("**/ticket"):
        await page.get_by_role("button", name="Share").click()
    await page.evaluate("history.pushState(null, '', '?run=01J00000000000000000000001')")
    await page.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
    links = {"page": "/?run=01J00000000000000000000000#ticket=x", "events": ""}
    await ticket[0].fulfill(json={"id": "x", "links": links, "expires_at": "2030-01-01T00:00:00Z"})

    await expect(page.locator("#share")).to_have_attribute("aria-disabled", "false")
    await expect(page.locator("#share-link")).to_have_attribute("hidden", "")


# --- the list ----------------------------------------------------------------


async def test_list_updates_itself_searches_and_cancels(page: Page, stagebus_url: str) -> None:
    """A run that another client created appears, is found by its metadata, and is cancelled from the list."""
    await page.goto("/")
    mark = "customer-4711"
    body = {"user_prompt": "Find me", "model": ENDLESS, "metadata": {"customer": mark}}
    run_id = await post_run(stagebus_url, body)
    entry = page.locator(f"[data-run-id='{run_id}']")
    await expect(entry).to_be_visible(timeout=10_000)
    await page.get_by_label("Search by prompt").fill(mark.upper())
    await page.get_by_label("Status").select_option("queued,running")
    await expect(page.locator("#recents-list li")).to_have_count(1)
    await expect(entry).to_contain_text("running", timeout=10_000)
    await page.get_by_role("button", name="Cancel: Find me").click()
    await page.get_by_role("button", name="Cancel the run").click()

    await expect(page.locator("#recents-note")).to_have_text("No run matches.", timeout=10_000)
    await page.get_by_label("Status").select_option("cancelled")
    await expect(entry).to_contain_text("cancelled")
    assert (await get_run(stagebus_url, run_id))["status"] == "cancelled"


async def test_click_survives_a_refresh_of_the_list(page: Page, stagebus_url: str) -> None:
    """Unchanged entries keep their elements, so a press and a release with a refresh between them are one click."""
    others = [await post_run(stagebus_url, {"user_prompt": "Older", "model": ENDLESS}) for _ in range(2)]
    run_id = await post_run(stagebus_url, {"user_prompt": "Press me", "model": "demo:delay_ms=0,tokens=1"})
    await page.goto("/")
    entry = page.locator(f"[data-run-id='{run_id}']")
    await expect(entry).to_contain_text("succeeded", timeout=10_000)
    await entry.hover()
    await page.mouse.down()
    async with httpx.AsyncClient(base_url=stagebus_url) as http:
        for other in others:  # the feed tells of the end of each
            await http.post(f"/runs/{other}/cancel")
            await expect(page.locator(f"[data-run-id='{other}']")).to_contain_text("cancelled", timeout=10_000)
    await page.evaluate("() => new Promise(requestAnimationFrame)")
    await page.mouse.up()

    await expect(page).to_have_url(re.compile(run_id))


async def test_list_loads_older_runs_when_scrolled(page: Page, stagebus_url: str) -> None:
    """Each older run appears once."""
    wanted = 70
    async with httpx.AsyncClient(base_url=stagebus_url) as http:
        for n in range(wanted):
            body = {"user_prompt": f"Scrolled {n}", "model": "demo:delay_ms=0,tokens=1"}
            (await http.post("/runs", json=body)).raise_for_status()
    await page.goto("/")
    entries = page.locator("#recents-list li")
    async with page.expect_response("**/runs?*q=scrolled*"):
        await page.get_by_label("Search by prompt").fill("scrolled")
    await expect(entries).to_have_count(60)  # the first page and the next
    await page.mouse.move(100, 500)
    await page.mouse.wheel(0, 10_000)

    await expect(entries).to_have_count(wanted)
    ids = await page.locator("#recents-list a").evaluate_all("all => all.map((a) => a.dataset.runId)")
    assert ids == sorted(set(ids), reverse=True)


# --- the events --------------------------------------------------------------


async def test_ten_thousand_events_are_listed_filtered_and_copied(open_page: OpenPage, stagebus_url: str) -> None:
    """Only visible events are rendered. The copied curl command returns the selected event first."""
    page = await open_page(viewport={"width": 1280, "height": 800}, permissions=["clipboard-read", "clipboard-write"])
    run_id = await show(page, stagebus_url, {"user_prompt": "Hi", "model": "demo:delay_ms=0,tokens=10000"})
    await wait_for_end(page)
    await page.locator("#events > summary").click()
    last_id = (await get_run(stagebus_url, run_id))["last_event_id"]
    await expect(page.locator("#events-count")).to_have_text(re.compile(r"10,0\d\d"))
    await expect(page.locator(".event").first).to_be_visible()
    assert await page.locator(".event").count() < 100
    await page.locator("#events-list").focus()
    await page.keyboard.press("End")
    await expect(page.locator("#event-title")).to_have_text(f"{last_id} done")
    await page.get_by_label("Filter the events").fill("stage_completed")
    await expect(page.locator(".event")).to_have_count(1)
    await page.locator(".event").click()
    redis_line = await copied(page, "Copy as redis-cli")
    curl_line = await copied(page, "Copy as curl")

    event_id, name = (await page.locator("#event-title").text_content() or "").split()
    assert redis_line == f"redis-cli XRANGE 'sb:run:{{{run_id}}}:stage:extraction' {event_id} {event_id}"
    cursor = re.search(r"Last-Event-ID: (\S+)'", curl_line)
    assert cursor is not None
    async with httpx.AsyncClient(base_url=stagebus_url) as http:
        stream = await http.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": cursor[1]})
    assert stream.text.split("\n\n")[1].startswith(f"id: {event_id}\nevent: {name}\n")


async def test_event_filter_with_a_whole_name_matches_only_that_name(page: Page, stagebus_url: str) -> None:
    """`tool_result` does not match the `tool_results` in every chunk's data; a part of a name matches as text."""
    await show(page, stagebus_url, {"user_prompt": "What is the weather in Paris and in Tokyo?"})
    await wait_for_end(page)
    await page.locator("#events > summary").click()
    names = page.locator(".event .name")
    await page.get_by_label("Filter the events").fill("tool_result")
    await expect(names).to_have_text(["tool_result", "tool_result"])
    await page.get_by_label("Filter the events").fill("tool_result tokyo")
    await expect(names).to_have_text(["tool_result"])
    await page.get_by_label("Filter the events").fill("stage_comp")

    await expect(names).to_have_text(["stage_completed"] * 3)


# --- the answer --------------------------------------------------------------


async def test_markdown_is_rendered(page: Page) -> None:
    await serve_text(page, MARKDOWN)

    answer = page.locator("#answer")
    for place, text in {
        "h3": "Title", "em": "emphasis", "p > code": "code <b>", "ol > li:first-child": "one", "ul > li": "inner",
        "blockquote": "quoted", "pre": 'let a = "<i>";', "td >> nth=1": "2",
    }.items():  # fmt: skip
        await expect(answer.locator(place)).to_have_text(text)
    link = answer.get_by_role("link", name="a link")
    assert await link.get_attribute("href") == "https://example.org/"
    assert "noreferrer" in (await link.get_attribute("rel") or "")
    await page.set_viewport_size(PHONE)
    hidden_px = "(element) => element.scrollWidth - element.clientWidth"
    assert await answer.locator(".table").evaluate(hidden_px) > 0, "a wide table scrolls by itself"
    assert await page.locator("html").evaluate(hidden_px) == 0
    assert await answer.locator("td").first.evaluate("({ clientHeight }) => clientHeight") < 50, "and breaks no word"


async def test_usage_shows_tokens_and_cost(page: Page) -> None:
    await serve_text(page, "Mild.")

    await expect(page.locator("#usage")).to_have_text("1,200 tokens (1,000 in, 200 out) · €0.0042")


async def test_hostile_markdown_runs_no_script_and_loads_nothing(page: Page, stagebus_url: str) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    await serve_text(page, HOSTILE)

    answer = page.locator("#answer")
    await expect(answer.locator("img, script, iframe, [onerror], [href^=javascript], [href^=data]")).to_have_count(0)
    await expect(answer.locator("p").first).to_contain_text("<img src=x")
    await expect(answer).to_contain_text("javascript:document.title")
    assert "owned" not in await page.title()
    assert all(url.startswith(stagebus_url) for url in urls)


# --- the form ----------------------------------------------------------------


async def test_form_options_reach_the_run_and_are_remembered(page: Page) -> None:
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    await page.goto("/")
    await page.get_by_text("Options").click()
    await page.get_by_label("System prompt").fill("Be brief.")
    await page.get_by_label("get_weather").uncheck()
    await page.get_by_label("Tool rounds").fill("2")
    await page.get_by_label("Temperature", exact=True).fill("0.5")
    await page.get_by_label("Its temperature").fill("0.9")
    await page.get_by_label("Its model").fill("demo:delay_ms=1")
    await page.get_by_label("Its tokens").fill("200")
    await page.get_by_label("Tool calls").select_option("none")
    await page.locator("#metadata").fill("customer=acme")
    await page.locator("#prompt").fill("Hi")
    await page.locator("#start").click()
    await wait_for_end(page)
    await page.goto("/")

    assert bodies == [{
        "user_prompt": "Hi", "synthesis": True, "system_prompt": "Be brief.", "max_rounds": 2, "temperature": [0.5, 0.9],
        "model": {"synthesis": "demo:delay_ms=1"}, "max_tokens": [None, 200], "tool_choice": "none", "tools": ["pay"],
        "metadata": {"customer": "acme"},
    }]  # fmt: skip
    await expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    await expect(page.get_by_label("get_weather")).not_to_be_checked()
    await expect(page.get_by_label("Its tokens")).to_have_value("200")
    await expect(page.locator("#metadata")).to_have_value("")


async def test_answer_that_was_cut_off_is_marked_in_the_run_and_in_the_list(page: Page) -> None:
    body = {"user_prompt": "Say hello.", "model": "demo:delay_ms=0", "tools": [], "max_tokens": 3}
    run = await (await page.request.post("/runs", data=body)).json()
    await page.goto(f"/?run={run['id']}")
    await wait_for_end(page)

    await expect(page.locator("#run")).to_contain_text("cut off at the token limit")
    await expect(page.locator(f"[data-run-id='{run['id']}']")).to_contain_text("cut off at the token limit")


async def test_page_says_that_the_demo_model_answers_and_offers_an_approval(page: Page) -> None:
    tool = {"name": "book_table", "description": "Book.", "parameters": {}, "requires_approval": True}
    await page.route("**/tools", lambda route: route.fulfill(json={"tools": [tool]}))
    await page.goto("/")
    await expect(page.locator("#demo-note")).to_contain_text("demo model that comes with Stagebus answers")
    await page.get_by_role("button", name="Book a table").click()

    await expect(page.locator("#prompt")).to_have_value("Book a table for 4 at Luigi's")


async def test_gateway_errors_appear_at_the_form_options(page: Page) -> None:
    await page.goto("/")
    await page.get_by_text("Options").click()
    await page.get_by_label("Tool rounds").fill("0")
    await page.get_by_label("Its temperature").fill("3")
    await page.locator("#metadata").fill("no equals sign")
    await page.locator("#prompt").fill("Hi")
    await page.locator("#start").click()
    await expect(page.locator("#metadata-error")).to_contain_text("name=value")
    await page.locator("#metadata").fill("")
    await page.locator("#start").click()

    await expect(page.locator("#synthesis-temperature-error")).to_contain_text("less than or equal to 2")
    await expect(page.locator("#rounds-error")).not_to_be_empty()
    await expect(page.locator("#form-error")).to_be_empty()
    await expect(page.get_by_label("Tool rounds")).to_be_focused()


# --- the system view, accessibility ----------------------------------------


async def test_system_view_shows_the_runs_of_each_worker(page: Page, stagebus_url: str) -> None:
    run_id = await post_run(stagebus_url, {"user_prompt": "Hi", "model": ENDLESS})
    await page.goto("/")
    await page.get_by_role("link", name="System").click()
    held = page.locator("#workers").get_by_role("link", name=run_id)
    await expect(held).to_be_visible(timeout=20_000)
    await expect(page.locator("[data-figure=running]")).not_to_have_text("0")
    await expect(page.locator("#hour > *")).to_have_count(60)
    await expect(page.locator("[data-figure=hour-events]")).not_to_have_text(
        "0", timeout=1000
    )  # from the first answer on
    await held.focus()
    for _ in range(2):  # the first answer may belong to an earlier request
        await page.wait_for_event("requestfinished", lambda request: request.url.endswith("/stats"))
    await expect(held).to_be_focused()
    await page.keyboard.press("Enter")
    await page.locator("#cancel").click()
    await wait_for_end(page, "cancelled")


async def test_page_has_no_accessibility_violations(page: Page, stagebus_url: str) -> None:
    """Checks the form with its options, a run that asks for approval, one that waits for the result of a client's tool,
    an ended run with its events, the system view.
    """
    await page.emulate_media(reduced_motion="reduce")
    await page.goto("/")
    await page.get_by_text("Options").click()
    await expect(page.get_by_label("get_weather")).to_be_visible()
    found = {"form": await axe_violations(page)}
    await show(page, stagebus_url, PAY)
    await expect(page.locator(".decide")).to_be_visible()
    found["asking"] = await axe_violations(page)
    await page.get_by_role("button", name="Approve").click()
    await wait_for_end(page)
    await show(page, stagebus_url, LOCATE)
    send = page.get_by_role("button", name="Send the result")
    await send.click()
    await expect(page.locator(".decide [role=alert]")).to_have_text("Write a result first.")
    await page.get_by_label("Result, as text or JSON").fill('{"city": "Paris"}')
    found["result"] = await axe_violations(page)
    await page.get_by_label("this is an error").check()
    await send.click()
    await wait_for_end(page)
    await expect(page.locator(".decide")).to_have_count(0)
    await expect(page.locator("[data-call-id][data-state=error]").get_by_label("Result")).to_contain_text("Paris")
    await page.locator("#events > summary").click()
    await page.locator(".event").first.click()
    found["ended"] = await axe_violations(page)
    await page.goto("/?view=ops")
    await expect(page.locator("#workers .worker")).to_have_count(1, timeout=20_000)
    found["system"] = await axe_violations(page)

    assert {place: rules for place, rules in found.items() if rules} == {}
