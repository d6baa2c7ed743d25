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


@pytest.fixture
def stagebus_url(system: System) -> str:
    """The URL of the page."""
    return system.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One process of the machine's Chromium; each page gets its own profile."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        skip_or_fail("Chromium")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(browser: Browser, stagebus_url: str) -> AsyncIterator[OpenPage]:
    """Returns a function that opens a page in a new browser profile; fails the test if a page had an error.

    Relative addresses of the pages refer to the gateway.
    """
    faults: list[str] = []
    contexts: list[BrowserContext] = []

    def note_console(message: ConsoleMessage) -> None:
        # Violations of the page's Content-Security-Policy are errors; failed requests are not, as tests cause them.
        if "Content Security Policy" in message.text:
            faults.append(message.text)

    async def open_new_page(**options: Any) -> Page:
        context = await browser.new_context(**{"base_url": stagebus_url, **options})
        contexts.append(context)
        await context.add_init_script(RECORD_CONNECTION)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", note_console)
        return page

    yield open_new_page
    for context in contexts:
        await context.close()
    assert faults == [], "errors of the pages"


@pytest_asyncio.fixture(loop_scope="session")
async def page(open_page: OpenPage) -> Page:
    """A page in a new profile, with a desktop window."""
    return await open_page(viewport={"width": 1280, "height": 800})
