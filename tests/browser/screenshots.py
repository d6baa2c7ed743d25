"""Takes the screenshots of the page in docs/: `make screenshots`.

It starts a whole system with the demo model, creates some runs for the list, and waits for each scene. Every scene is
taken in light and in dark colours.
"""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from playwright.async_api import Browser, Page, async_playwright, expect

from stagebus.shared.local.supervisor import DEMO_TOOL
from tests.browser.conftest import CHROMIUM_ARGS, CHROMIUM_NAMES
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import System

DOCS: Final = Path(__file__).parent.parent.parent / "docs"
VIEWPORT: Final = {"width": 1200, "height": 1080}
PIXELS: Final = 1.5  # of the picture per pixel of the page
WEATHER: Final = "What is the weather in Paris and in Tokyo?"
BOOKING: Final = "Book a table for four in Oslo"
WAIT_MS: Final = 30_000

# Earlier runs, which the list shows.
EARLIER: Final = (
    ("Is it windy in New York?", "demo"),
    ("Where is it warmer now, Lima or Cairo?", "demo"),
    ("Compare Nairobi and Sydney for a holiday", "demo"),
    ("How humid is Mumbai?", "demo"),
    ("Summarise the weather of Berlin", "demo:status=401"),
    ("What do I wear in London tonight?", "demo"),
    ("Do I need an umbrella in Oslo today?", "demo"),
)
RUNNING: Final = {"user_prompt": "Watch the weather of Mumbai", "model": "demo:endless"}


async def main() -> None:
    """Takes all screenshots."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"STAGEBUS_TOOLS": DEMO_TOOL, "STAGEBUS_ASK_USER": "true"}
        async with System(Path(folder), env=env) as system, _browser() as browser:
            for prompt, model in EARLIER:
                run_id = await post_run(system.url, {"user_prompt": prompt, "model": model})
                await StrictClient([system.url], run_id).follow()
            await post_run(system.url, RUNNING)
            await _take_run(browser, system.url)
            await _take_approval(browser, system.url)
            await _take_system(browser, system.url)


async def _take_run(browser: Browser, url: str) -> None:
    """Takes a run in the middle of its answer."""
    # Slow, so that both colours show nearly the same moment.
    run_id = await post_run(url, {"user_prompt": WEATHER, "model": "demo:delay_ms=150"})
    page = await _open(browser, url)
    await page.goto(f"/?run={run_id}")
    await expect(page.locator("[data-stage=synthesis]")).to_be_visible(timeout=WAIT_MS)
    await page.wait_for_function("() => document.getElementById('answer').textContent.length > 60", timeout=WAIT_MS)
    await _take(page, "page")


async def _take_approval(browser: Browser, url: str) -> None:
    """Takes a call that waits for approval."""
    run_id = await post_run(url, {"user_prompt": BOOKING, "model": "demo"})
    page = await _open(browser, url)
    await page.goto(f"/?run={run_id}")
    await expect(page.locator(".decide")).to_be_visible(timeout=WAIT_MS)
    await page.get_by_text("Change the arguments").click()
    await _take(page, "page-approval")


async def _take_system(browser: Browser, url: str) -> None:
    page = await _open(browser, url)
    await page.goto("/?view=ops")
    await expect(page.locator("#workers .held li")).not_to_have_count(0, timeout=WAIT_MS)
    await expect(page.locator("[data-figure=tokens]")).to_have_text(re.compile(r"\d"), timeout=WAIT_MS)
    await _take(page, "page-system")


async def _take(page: Page, name: str) -> None:
    for scheme, suffix in (("light", ""), ("dark", "-dark")):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        await page.screenshot(path=DOCS / f"{name}{suffix}.png")


async def _open(browser: Browser, url: str) -> Page:
    context = await browser.new_context(base_url=url, viewport=VIEWPORT, device_scale_factor=PIXELS)
    return await context.new_page()


@asynccontextmanager
async def _browser() -> AsyncIterator[Browser]:
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        raise SystemExit("Chromium is not installed")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        await chromium.close()


if __name__ == "__main__":
    asyncio.run(main())
