"""The page of a gateway that is mounted below a prefix of another app, in a real browser."""

import re
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.support.mounted_gateway import PREFIX
from tests.support.system import System

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

END_MS: Final = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def host_url(system: System) -> AsyncIterator[str]:
    """The address of a host app, beside the system's own gateway."""
    host = system.process("host", ["-m", "tests.support.mounted_gateway"])
    host.start()
    yield await host.ready()
    await host.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def mounted_page(open_page: OpenPage, host_url: str) -> Page:
    return await open_page(base_url=host_url, viewport={"width": 1280, "height": 800})


async def test_mounted_page_starts_shows_and_shares_a_run(
    mounted_page: Page, open_page: OpenPage, host_url: str
) -> None:
    paths: list[str] = []
    mounted_page.on("request", lambda request: paths.append(request.url.removeprefix(host_url)))
    await mounted_page.goto(f"{PREFIX}/")
    await mounted_page.locator("#prompt").fill("What is the weather in Paris?")
    await mounted_page.locator("#start").click()
    await expect(mounted_page).to_have_url(re.compile(rf"{PREFIX}/\?run=\w+$"))
    await expect(mounted_page.locator("body")).to_have_attribute("data-run-status", "succeeded", timeout=END_MS)
    answer = await mounted_page.locator("#answer").inner_text()
    await mounted_page.locator("#share").click()
    await expect(mounted_page.locator("#share-url")).to_have_value(re.compile(rf"^{host_url}{PREFIX}/\?run="))
    guest = await open_page()
    await guest.goto(await mounted_page.locator("#share-url").input_value())

    await expect(guest.locator("#answer")).to_have_text(answer, timeout=END_MS)
    assert answer
    assert all(path.startswith(f"{PREFIX}/") for path in paths)


async def test_mounted_page_navigates_below_the_prefix(mounted_page: Page, host_url: str) -> None:
    await mounted_page.goto(f"{PREFIX}/")
    await mounted_page.locator("[data-ops]").click()
    await expect(mounted_page).to_have_url(f"{host_url}{PREFIX}/?view=ops")
    await expect(mounted_page.locator("#ops")).to_be_visible()
    await mounted_page.locator(".brand[data-home]").click()
    await expect(mounted_page).to_have_url(f"{host_url}{PREFIX}/")


async def test_mounted_docs_list_the_operations(mounted_page: Page) -> None:
    await mounted_page.goto(f"{PREFIX}/docs")

    await expect(mounted_page.locator("#operations-Runs-create_run")).to_be_visible()
    await expect(mounted_page.locator(".servers select")).to_have_value(PREFIX)
