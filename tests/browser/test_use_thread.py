"""The React hook `useThread` in a browser: send, stop, a reload in the middle of an answer, and two tabs of one thread."""

import os
import subprocess
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page, Request, expect

from tests.browser.conftest import OpenPage
from tests.support.needs import skip_or_fail
from tests.support.strict_client import get_run

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SOURCE = Path(__file__).with_name("thread_page.jsx")
MODULES = Path(__file__).parents[2] / "clients" / "js" / "node_modules"
ADDRESS = "/chat.html?thread=in+a+browser&model=demo:delay_ms=30,endless"
ANSWERS = "section p"
NEWEST_TEXT = "() => document.querySelector('section:last-of-type p')?.textContent"


@pytest.fixture(scope="module")
def html() -> str:
    """The page in one file, bundled with React and the client's sources."""
    if not (esbuild := MODULES / ".bin" / "esbuild").exists():
        skip_or_fail("clients/js/node_modules, which `make test` installs,")
    command = [
        esbuild,
        SOURCE,
        "--bundle",
        "--format=esm",
        "--jsx=automatic",
        "--define:process.env.NODE_ENV='production'",
    ]
    env = {**os.environ, "NODE_PATH": str(MODULES)}
    script = subprocess.run(command, env=env, capture_output=True, check=True, timeout=60).stdout.decode()
    return f'<!doctype html><body><script type="module">{script}</script>'


async def send(tab: Page, text: str) -> None:
    await tab.get_by_label("Message").fill(text)
    await tab.get_by_label("Message").press("Enter")


async def wait_for_more(*tabs: Page) -> None:
    """Waits until each tab shows more of the newest answer than now, or its beginning."""
    for tab in tabs:
        known = await tab.evaluate(NEWEST_TEXT) or ""
        await tab.wait_for_function(f"(known) => ({NEWEST_TEXT})()?.length > known.length", arg=known, timeout=10_000)


async def result_texts(stagebus_url: str) -> list[str]:
    """Returns the stored answers of the thread."""
    async with httpx.AsyncClient(base_url=stagebus_url) as api:
        turns = (await api.get("/threads/in%20a%20browser")).json()["turns"]
    return [(await get_run(stagebus_url, turn["run_id"]))["result"]["text"] for turn in turns]


async def test_two_tabs_of_a_thread_share_a_stream(open_page: OpenPage, stagebus_url: str, html: str) -> None:
    """Both show the answers while they grow, through a reload of the tab that has the stream, until they are stopped."""
    streams: list[Request] = []
    first = await open_page()
    await first.context.route("**/chat.html*", lambda route: route.fulfill(body=html, content_type="text/html"))
    second = await first.context.new_page()

    def note(request: Request) -> None:
        if "/threads/" in request.url and request.headers.get("accept") == "text/event-stream":
            streams.append(request)

    await first.goto(ADDRESS)
    await send(first, "What are you?")
    await wait_for_more(first)
    first.context.on("request", note)
    await second.goto(ADDRESS)
    await wait_for_more(second)
    await wait_for_more(first, second)
    assert await second.locator("main").get_attribute("data-transport") == "shared"
    assert streams == []
    await first.reload()
    await wait_for_more(first, second)
    assert [stream.frame.page for stream in streams] == [second], "it leads now, for both"

    for tab, message in ((first, "And in detail?"), (second, "")):
        await tab.get_by_role("button", name="Stop").click()
        for one in (first, second):
            await expect(one.locator("main")).to_have_attribute("data-status", "idle")
            assert await one.locator(ANSWERS).all_text_contents() == await result_texts(stagebus_url)
        if message:
            await send(second, message)
            for one in (first, second):
                await expect(one.locator("section")).to_have_count(2)
            await wait_for_more(first, second)
    assert await first.locator("b").all_text_contents() == ["What are you?", "And in detail?"]
    await expect(first.get_by_role("alert")).to_be_empty()
    assert len(streams) == 1
