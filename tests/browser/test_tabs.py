"""Several tabs of one browser: one stream for all that show a run, none for hidden ones, and no event lost or doubled."""

import re

import pytest
from playwright.async_api import Request, expect

from tests.browser.conftest import OpenPage, event_count, wait_for_more
from tests.support.strict_client import StrictClient, post_run
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

# More than the six connections that a browser opens to one host over HTTP/1.1.
TABS = 7
LONG = {"user_prompt": "What is the weather in Paris?", "model": "demo:delay_ms=150,endless"}
# Chromium without a screen shows every tab, so a tab is told that it is hidden. It stays so when it opens another page.
TELL_HIDDEN = "Object.defineProperty(document, 'hidden', { get: () => sessionStorage.getItem('hidden') === 'true' })"
HIDE = (
    "(hidden) => { sessionStorage.setItem('hidden', hidden); document.dispatchEvent(new Event('visibilitychange')); }"
)


async def test_tabs_of_a_run_share_a_stream_and_hidden_ones_have_none(open_page: OpenPage, stagebus_url: str) -> None:
    """The stream passes to another tab when its own is hidden, and when it is closed; every button still works."""
    streams: list[Request] = []
    feed_streams: list[Request] = []
    first = await open_page()
    await first.context.add_init_script(TELL_HIDDEN)
    tabs = [first, *[await first.context.new_page() for _ in range(TABS - 1)]]

    def note(request: Request) -> None:
        if request.url.endswith("/events") and request.headers.get("accept") == "text/event-stream":
            (feed_streams if request.url.endswith("/runs/events") else streams).append(request)

    first.context.on("request", note)
    run_id = await post_run(stagebus_url, LONG)
    for tab in tabs:
        await tab.goto(f"/?run={run_id}")
        await expect(tab.locator("#connection")).to_have_text(re.compile("Live"), timeout=15_000)
    await wait_for_more(tabs)
    assert len(streams) == len(feed_streams) == 1, "one stream of the run and one of the list for all tabs"

    await first.evaluate(HIDE, True)
    await wait_for_more(tabs[1:])
    assert len(streams) == 2
    leader = streams[1].frame.page
    await leader.close()
    tabs.remove(leader)
    await wait_for_more(tabs[1:])
    await until(lambda: len(streams) == 3)
    await first.evaluate(HIDE, False)
    await wait_for_more(tabs)
    for tab in tabs[1:]:
        await tab.evaluate(HIDE, True)
    await wait_for_more([first])
    assert streams[-1].frame.page is first

    # Other runs in the other tabs, all visible: some poll, and requests find a free connection.
    for tab in tabs[1:]:
        await tab.evaluate(HIDE, False)
        await tab.goto(f"/?run={await post_run(stagebus_url, LONG)}")
        await wait_for_more([tab])
    await wait_for_more(tabs)
    assert await tabs[-1].locator("#connection").text_content() == "Live (polling)"
    await first.locator("#cancel").click()
    await expect(first.locator("body")).to_have_attribute("data-run-status", "cancelled", timeout=10_000)
    whole = await StrictClient([stagebus_url], run_id).follow()
    assert await event_count(first) == len(whole.events)
    for tab in tabs[1:]:
        await tab.locator("#cancel").click()
        await expect(tab.locator("body")).to_have_attribute("data-run-status", "cancelled", timeout=10_000)
