"""The React chat of examples/react-chat, with the AI SDK's `useChat`, against a real system.

The built page is served under the gateway's own origin, as behind a proxy.
"""

import subprocess
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, expect

from tests.support.needs import skip_or_fail

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "react-chat"
BASE = "/react-chat/"
ANSWER = "li[data-role=assistant] p"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built with Vite."""
    if not (EXAMPLE / "node_modules").exists():
        skip_or_fail("examples/react-chat/node_modules, which `make test` installs,")
    folder = tmp_path_factory.mktemp("react-chat")
    vite = ["npx", "vite", "build", "--base", BASE, "--outDir", str(folder), "--emptyOutDir", "--logLevel", "error"]
    subprocess.run(vite, cwd=EXAMPLE, check=True, timeout=120)
    return folder


@pytest_asyncio.fixture(loop_scope="session")
async def chat(page: Page, built: Path) -> Page:
    """A page with a new chat."""

    async def serve(route: Route) -> None:
        name = httpx.URL(route.request.url).path.removeprefix(BASE) or "index.html"
        await route.fulfill(body=(built / name).read_bytes(), content_type=TYPES[Path(name).suffix])

    await page.route(f"**{BASE}**", serve)
    await page.goto(BASE)
    return page


async def send(chat: Page, text: str) -> None:
    await chat.get_by_label("Message").fill(text)
    await chat.get_by_label("Message").press("Enter")


async def newest_run(stagebus_url: str) -> dict:
    async with httpx.AsyncClient(base_url=stagebus_url) as api:
        newest = (await api.get("/runs", params={"limit": 1})).json()["runs"][0]["id"]
        return (await api.get(f"/runs/{newest}")).json()


async def test_answer_survives_a_reload_and_stop_ends_the_run(chat: Page, stagebus_url: str) -> None:
    await send(chat, "Tell me what you are.")
    await chat.wait_for_function("() => document.querySelector('li[data-role=assistant] p')?.textContent.length > 20")
    await chat.reload()
    await expect(chat.locator("main")).to_have_attribute("data-status", "ready", timeout=20_000)
    run = await newest_run(stagebus_url)

    assert await chat.locator(ANSWER).all_text_contents() == [run["result"]["text"]]
    assert (await chat.locator("li[data-role=user]").all_text_contents()) == ["Tell me what you are."]

    await send(chat, "And more of that, please.")
    await expect(chat.locator(ANSWER)).to_have_count(2)
    await chat.get_by_role("button", name="Stop").click()
    await expect(chat.locator("main")).to_have_attribute("data-status", "ready")
    stopped = await newest_run(stagebus_url)
    assert stopped["status"] == "cancelled"
    assert await chat.locator(ANSWER).last.text_content() == stopped["result"]["text"]


async def test_calls_are_cards_and_one_waits_for_approval(chat: Page, stagebus_url: str) -> None:
    await send(chat, 'call pay {"n": 5, "seconds": 0}')
    card = chat.get_by_label("Call of pay")
    await expect(card).to_contain_text("waits for you")
    await chat.reload()
    await expect(card).to_contain_text("waits for you")
    await card.get_by_role("button", name="Approve").click()

    await expect(card).to_contain_text("done")
    await expect(chat.locator("main")).to_have_attribute("data-status", "ready", timeout=20_000)
    assert (await newest_run(stagebus_url))["status"] == "succeeded"
