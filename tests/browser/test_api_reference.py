"""The API reference at `/docs` in a real browser."""

import pytest
from playwright.async_api import Page, expect

from stagebus.gateway.endpoint_table import ENDPOINTS

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


async def test_docs_list_every_operation_and_call_the_gateway(page: Page, stagebus_url: str) -> None:
    """All of it comes from the gateway, and nothing violates the page's policy."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    await page.goto("/docs")
    await expect(page.locator(".opblock").first).to_be_visible()
    operations = page.locator(".opblock-summary-description")
    documented = sorted(endpoint.summary for endpoint in ENDPOINTS if endpoint.is_documented)
    assert sorted(await operations.all_inner_texts()) == documented  # the page groups them by tag and path

    operation = page.locator("#operations-Runs-list_runs")
    await operation.locator(".opblock-summary").click()
    await expect(operation.get_by_text("The maximum number of runs.")).to_be_visible()
    await operation.get_by_role("button", name="Try it out").click()
    await operation.get_by_role("button", name="Execute").click()
    await expect(operation.locator(".live-responses-table .response .response-col_status")).to_have_text("200")
    assert urls
    assert all(url.startswith(f"{stagebus_url}/") for url in urls)
