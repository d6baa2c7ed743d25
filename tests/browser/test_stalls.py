"""A run whose worker or whose Redis is away: the page and the command line say so, and then show every event."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import event_count, wait_for_more
from tests.support.strict_client import StrictClient, post_run
from tests.support.system import System

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ROOT = Path(__file__).parent.parent.parent
# What the page and the command line may take: the silence, the check, and a loaded machine.
TOLD_MS = 10_000
LONG = {"user_prompt": "What is the weather in Paris?", "model": "demo:delay_ms=60,endless"}


async def test_page_and_command_line_say_what_a_silent_run_waits_for(page: Page, system: System) -> None:
    run_id = await post_run(system.url, LONG)
    await page.goto(f"/?run={run_id}")
    pill = page.locator("#connection")
    await expect(pill).to_have_text("Live")
    tail = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stagebus.cli", "tail", run_id, "--url", system.url, cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    (worker,), storage = system.workers, (await system.redis.info("server"))["process_id"]
    assert tail.stderr is not None
    for process_id, text in ((worker.pid, "Waiting for the worker"), (storage, "Storage is away")):
        await wait_for_more([page])
        os.kill(process_id, signal.SIGSTOP)
        try:
            await expect(pill).to_have_text(text, timeout=TOLD_MS)
            await expect(page.locator("#run-status")).to_have_text(text.lower())
            async with asyncio.timeout(TOLD_MS / 1000):
                await tail.stderr.readuntil(text.lower().encode())
        finally:
            os.kill(process_id, signal.SIGCONT)
        await expect(pill).to_have_text("Live", timeout=TOLD_MS)
    await page.locator("#cancel").click()
    await expect(page.locator("body")).to_have_attribute("data-run-status", "cancelled", timeout=TOLD_MS)
    assert await asyncio.wait_for(tail.wait(), 10) != 0

    whole = await StrictClient([system.url], run_id).follow()
    assert await event_count(page) == len(whole.events)
