"""The built JavaScript client and the EventSource example in a browser, against a real gateway."""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.support.strict_client import StrictClient, get_run, post_run

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

EXAMPLE = Path(__file__).parent.parent.parent / "clients" / "js" / "examples" / "eventsource.html"
SLOW = {"user_prompt": "What is the weather in Paris and in Tokyo?", "model": "demo:delay_ms=30"}
BLANK = "<!doctype html><title>An application's page</title>"

# Follows a run for so many events, or to its end; sessionStorage keeps the events over a reload.
FOLLOW = """async ([runId, eventsMax]) => {
    const { Stagebus } = await import("/static/vendor/stagebus-client.js");
    const seen = JSON.parse(sessionStorage.getItem("seen") ?? "[]");
    const run = new Stagebus().runs.resume(runId, seen.at(-1)?.[0]);
    for await (const { id, name } of run.events()) {
        seen.push([id, name]);
        if (seen.length === eventsMax) break;
    }
    sessionStorage.setItem("seen", JSON.stringify(seen));
    return seen;
}"""


async def show(page: Page, html: str) -> None:
    """Serves a page on the gateway's origin."""
    await page.route("**/own.html*", lambda route: route.fulfill(body=html, content_type="text/html"))


async def test_built_client_continues_after_reloads(page: Page, stagebus_url: str) -> None:
    await show(page, BLANK)
    await page.goto("/own.html")
    run_id = await post_run(stagebus_url, SLOW)
    for events_max in (5, 12, 100_000):
        seen = await page.evaluate(FOLLOW, [run_id, events_max])
        await page.reload()
    whole = await StrictClient([stagebus_url], run_id).follow()

    assert seen == [[event.id, event.event] for event in whole.events]


async def test_eventsource_example_shows_a_run(page: Page, stagebus_url: str) -> None:
    await show(page, EXAMPLE.read_text())
    run_id = await post_run(stagebus_url, SLOW)
    await page.goto(f"/own.html?run={run_id}")
    await expect(page.locator("#state")).to_have_text("done", timeout=20_000)

    answer = (await get_run(stagebus_url, run_id))["result"]["text"]
    assert await page.locator("#answer").text_content() == answer
