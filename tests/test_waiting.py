"""`until`, `until_equal` and `block_until`, with which the tests wait for a condition."""

import asyncio

import pytest

from tests.support.waiting import block_until, until, until_equal


async def test_until_returns_the_first_truthy_value() -> None:
    values = iter([0, None, "", "there"])

    assert await until(lambda: next(values)) == "there"


async def test_until_awaits_coroutines() -> None:
    values = iter([0, 7])

    async def read() -> int:
        return next(values)

    assert await until(read) == 7


@pytest.mark.parametrize(
    ("waiting", "message"),
    [
        (lambda: until(list, timeout_s=0.03), r"truthy within 0.03 s; the last value was \[\]$"),
        (
            lambda: until_equal(lambda: 2, 3, timeout_s=0.03),
            "equals 3 within 0.03 s; the last value was 2 \\(test_waiting.py:",
        ),
        (lambda: until(lambda: asyncio.sleep(60), timeout_s=0.03), "the last value was 'not read'"),
        (lambda: asyncio.to_thread(block_until, lambda: 0, 0.03), "truthy within 0.03 s; the last value was 0"),
    ],
)
async def test_deadline_error_shows_the_last_value(waiting, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await waiting()


async def test_timeout_of_the_condition_itself_passes_through() -> None:
    async def read() -> int:
        raise TimeoutError("from the server")

    with pytest.raises(TimeoutError, match="from the server"):
        await until(read)
