"""The storm's webhook: a receiver that fails at random, and that has to be told of every end in spite of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from stagebus.shared.storage import keys
from stagebus.shared.store.webhook_deliveries import count_open
from tests.support.webhook_receiver import SECRET, WebhookReceiver, receiving

SETTLE_S = 60.0


class StormWebhooks:
    """A receiver of all ends of runs, and the environment of processes that tell it."""

    def __init__(self, receiver: WebhookReceiver, file: Path) -> None:
        self._receiver = receiver
        self.env = {"STAGEBUS_WEBHOOKS": str(file)}
        file.write_text(f'[endpoints.storm]\nurl = "{receiver.url("/random")}"\nsecret = "{SECRET}"\n')

    async def find_untold(self, redis: Redis, run_ids: Collection[str], deleted: Collection[str]) -> list[str]:
        """Waits until nothing is left to be told; returns a line for each run whose end was not told, or told wrongly.

        Args:
            deleted: runs of which nothing is left to compare.
        """
        self._receiver.is_moody = False
        deadline = time.monotonic() + SETTLE_S
        while (await redis.xlen(keys.outbox()) or await count_open(redis)) and time.monotonic() < deadline:
            for endpoint in await count_open(redis):
                waiting = set(await redis.zrange(keys.webhook_due(endpoint), 0, -1))
                waiting -= set(await redis.zrange(keys.webhook_trying(endpoint), 0, -1))
                if waiting:
                    await redis.zadd(keys.webhook_due(endpoint), dict.fromkeys(waiting, 1), xx=True)
            await redis.rpush(keys.outbox_bell(), "1")  # type: ignore[misc]
            await asyncio.sleep(0.5)
        ends = [message for message in self._receiver.messages if message.payload["type"] == "run.ended"]
        told = {
            (message.run_id, message.payload["data"]["status"]) for message in ends if message.run_id not in deleted
        }
        real = {(run_id, (await redis.hget(keys.run(run_id), "status") or b"").decode()) for run_id in run_ids}  # type: ignore[misc]
        lines = [f"{run_id} ended as {status} and was not told so" for run_id, status in sorted(real - told)]
        return lines + [f"{run_id} was told to have ended as {status}" for run_id, status in sorted(told - real)]


@asynccontextmanager
async def storm_webhooks(folder: Path) -> AsyncIterator[StormWebhooks]:
    """Serves the receiver."""
    async with receiving() as receiver:
        yield StormWebhooks(receiver, folder / "webhooks.toml")
