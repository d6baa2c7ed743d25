"""Fixtures: a real Chromium, and a whole system that serves the page."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from tests.support.needs import skip_or_fail
from tests.support.system import System

CHROMIUM_ARGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

# Records every state of the connection, from before the page's first script.
RECORD_CONNECTION = """
    window.connectionStates = [];
    const note = (state) => state && state !== window.connectionStates.at(-1) && window.connectionStates.push(state);
    new MutationObserver((changes) => {
        for (const { oldValue } of changes) note(oldValue); // one callback may report several changes
        note(document.body?.dataset.connection);
    }).observe(document, {
        subtree: true, childList: true, attributeFilter: ["data-connection"], attributeOldValue: true,
    });
"""

COUNT_EVENTS = "() => Number(document.getElementById('events-count').textContent.replaceAll(',', ''))"

OpenPage = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system with one gateway, one worker and the demo model. Calls of its tool `pay` wait for approval."""
    folder = tmp_path_factory.mktemp("browser")
    env = {
        "STAGEBUS_TOOLS": "tests.support.fault_tools:pay", "FAULT_TOOLS_LOG": str(folder / "tools.log"),
        "STAGEBUS_APPROVALS": "pay", "STAGEBUS_SECRET": "x" * 32,
    }  # fmt: skip
    async with System(folder, env=env) as running:
        yield running


@pytest.fixture(scope="session")
def stagebus_url(system: System) -> str:
    """The URL of the page."""
    return system.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One process of the machine's Chromium."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        skip_or_fail("Chromium")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def profile(browser: Browser, stagebus_url: str) -> AsyncIterator[BrowserContext]:
    """The profile of the fixture `page`, with a desktop window.

    A page that stays open keeps the origin's renderer process, which takes half of the CPU time of a new page.
    """
    context = await _new_profile(browser, base_url=stagebus_url, viewport={"width": 1280, "height": 800})
    await (await context.new_page()).goto("/static/favicon.svg")
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def faults() -> AsyncIterator[list[str]]:
    """The errors of the test's pages; fails the test if there is one."""
    found: list[str] = []
    yield found
    assert found == [], "errors of the pages"


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, stagebus_url: str, faults: list[str]) -> AsyncIterator[OpenPage]:
    """Returns a function that opens a page in a new browser profile.

    Relative addresses of the pages refer to the gateway.
    """
    contexts: list[BrowserContext] = []

    async def open_new_page(**options: Any) -> Page:
        contexts.append(await _new_profile(browser, **{"base_url": stagebus_url, **options}))
        return await _new_page(contexts[-1], faults)

    yield open_new_page
    for context in contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(profile: BrowserContext, stagebus_url: str, faults: list[str]) -> AsyncIterator[Page]:
    """A page with a desktop window, in a profile that is as empty as a new one."""
    page = await _new_page(profile, faults)
    yield page
    devtools = await profile.new_cdp_session(page)
    await devtools.send("Storage.clearDataForOrigin", {"origin": stagebus_url, "storageTypes": "all"})
    await profile.clear_cookies()
    await page.close()


async def _new_profile(browser: Browser, **options: Any) -> BrowserContext:
    context = await browser.new_context(**options)
    await context.add_init_script(RECORD_CONNECTION)
    return context


async def _new_page(context: BrowserContext, faults: list[str]) -> Page:
    """Opens a page that notes its errors in `faults`."""

    def note_console(message: ConsoleMessage) -> None:
        # Violations of the page's Content-Security-Policy are errors; failed requests are not, as tests cause them.
        if "Content Security Policy" in message.text:
            faults.append(message.text)

    page = await context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", note_console)
    return page


async def event_count(tab: Page) -> int:
    """Returns the number of events that a page with a run shows."""
    return int(await tab.evaluate(COUNT_EVENTS))


async def wait_for_more(tabs: list[Page]) -> None:
    """Waits until each tab shows more events than now."""
    for tab, seen in [(tab, await event_count(tab)) for tab in tabs]:
        await tab.wait_for_function(f"(seen) => ({COUNT_EVENTS})() > seen", arg=seen, timeout=10_000)
