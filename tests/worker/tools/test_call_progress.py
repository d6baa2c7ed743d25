import asyncio
import threading

import pytest

from stagebus.worker.tools.call_progress import PROGRESS_INTERVAL_S, CallProgress, ProgressUpdate
from stagebus.worker.tools.tool_context import PROGRESS_MESSAGE_MAX_CHARS, ToolContext
from tests.support.waiting import until


class Watched(CallProgress):
    """Counts its announcements and says when they came."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.announced_at: list[float] = []
        super().__init__(self._note)

    def _note(self, _: CallProgress) -> None:
        self.announced_at.append(asyncio.get_running_loop().time())
        self.news.set()

    async def next(self) -> ProgressUpdate | None:
        async with asyncio.timeout(5):
            await self.news.wait()
        self.news.clear()
        return self.take()


async def test_news_come_at_once_and_then_no_sooner_than_the_interval() -> None:
    progress = Watched()
    progress.report("one", 0.1)
    assert await progress.next() == ProgressUpdate("one", 0.1)

    progress.report("two", None)
    progress.report("three", 0.3)
    assert await progress.next() == ProgressUpdate("three", 0.3)
    first, second = progress.announced_at
    assert second - first >= PROGRESS_INTERVAL_S * 0.9


async def test_flood_from_a_thread_is_one_note_and_one_message() -> None:
    """Meanwhile no message is taken, as when Redis is away."""
    progress = Watched()

    def flood() -> None:
        for place in range(100_000):
            progress.report(str(place), None)

    thread = threading.Thread(target=flood)
    thread.start()
    await until(lambda: not thread.is_alive(), timeout_s=60)
    assert len(progress.announced_at) <= 1
    assert progress.close() == ProgressUpdate("99999", None)
    progress.report("too late", None)
    assert progress.take() is None


@pytest.mark.parametrize(
    ("fraction", "told"), [(0.5, 0.5), (7, 1.0), (-1, 0.0), (float("nan"), None), (float("inf"), 1.0), (None, None)]
)
def test_fraction_is_one_of_the_whole(fraction: float | None, told: float | None) -> None:
    said: list[tuple[str, float | None]] = []
    ToolContext("r", "c", report=lambda *what: said.append(what)).progress("x", fraction)

    assert said == [("x", told)]


@pytest.mark.parametrize(
    ("message", "told"), [("x" * 9999, "x" * PROGRESS_MESSAGE_MAX_CHARS), ("a\ud83d", "a?"), ("", "")]
)
def test_message_is_text_that_can_be_sent(message: str, told: str) -> None:
    said: list[tuple[str, float | None]] = []
    ToolContext("r", "c", report=lambda *what: said.append(what)).progress(message)

    assert said == [(told, None)]


async def test_context_made_by_hand_takes_progress_and_drops_it() -> None:
    ToolContext(run_id="r", call_id="c").progress("anything", 0.5)
