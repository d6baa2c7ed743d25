"""Repeating an operation until Redis answers."""

import asyncio
import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import redis_client
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from tests.support.proxy import Proxy


class FakeClock:
    def __init__(self) -> None:
        self.pauses_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)


class Operation:
    """Fails with each of the errors in turn, then returns 7."""

    def __init__(self, *errors: RedisError | OSError) -> None:
        self.errors = list(errors)

    async def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7


async def test_retry_doubles_its_pause_up_to_the_limit() -> None:
    clock = FakeClock()
    operation = Operation(*[RedisConnectionError("down")] * 5)

    result = await retry_while_redis_is_down(operation, "test", backoff_s=0.1, backoff_max_s=0.5, sleep=clock.sleep)

    assert result == 7
    assert clock.pauses_s == [0.1, 0.2, 0.4, 0.5, 0.5]


async def test_retry_does_not_pause_when_redis_answers() -> None:
    clock = FakeClock()

    assert await retry_while_redis_is_down(Operation(), "test", sleep=clock.sleep) == 7
    assert clock.pauses_s == []


@pytest.mark.parametrize(
    "error", [RedisConnectionError("down"), OSError("down"), ResponseError("LOADING Redis is loading")]
)
async def test_retry_repeats_errors_that_pass(error: RedisError | OSError) -> None:
    assert await retry_while_redis_is_down(Operation(error), "test", sleep=FakeClock().sleep) == 7


async def test_retry_raises_an_error_that_would_come_again() -> None:
    clock = FakeClock()
    operation = Operation(RedisConnectionError("down"), ResponseError("WRONGTYPE not a hash"))

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await retry_while_redis_is_down(operation, "test", sleep=clock.sleep)
    assert len(clock.pauses_s) == 1


async def test_retry_repeats_what_the_caller_says() -> None:
    operation = Operation(ResponseError("WRONGTYPE not a hash"))

    assert await retry_while_redis_is_down(operation, "test", is_retryable=lambda _: True, sleep=FakeClock().sleep) == 7


async def test_retry_leaves_other_errors_alone() -> None:
    async def operation() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await retry_while_redis_is_down(operation, "test")


async def test_outage_is_logged_once_for_all_that_wait(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    waiting = [Operation(*[RedisConnectionError("down")] * 3) for _ in range(5)]

    await asyncio.gather(
        *(
            retry_while_redis_is_down(operation, f"run {n}", sleep=lambda _: asyncio.sleep(0))
            for n, operation in enumerate(waiting)
        )
    )

    lost, back = [record.message for record in caplog.records]
    assert lost == "run 0: waiting for Redis (down); so does everything else until it is back"
    assert back.startswith("run 0: Redis is back after 0.0 s")


async def test_retry_ends_immediately_when_cancelled() -> None:
    is_asleep = asyncio.Event()

    async def sleep(_: float) -> None:
        is_asleep.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(
        retry_while_redis_is_down(Operation(RedisConnectionError("down")), "test", sleep=sleep)
    )
    await asyncio.wait_for(is_asleep.wait(), 5)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 5)


async def test_retry_waits_for_a_real_server_to_come_back(settings: Settings) -> None:
    port = int(settings.redis_url.get_secret_value().split(":")[-1].split("/")[0])
    async with Proxy(port) as proxy:
        client = redis_client.connect(
            settings.model_copy(update={"redis_url": type(settings.redis_url)(f"redis://127.0.0.1:{proxy.port}/0")})
        )
        await proxy.close()
        pauses = 0

        async def sleep(_: float) -> None:
            nonlocal pauses
            pauses += 1
            if pauses == 3:
                await proxy.__aenter__()

        try:
            assert await retry_while_redis_is_down(client.ping, "test", sleep=sleep)
        finally:
            await redis_client.close(client)

    assert pauses == 3
