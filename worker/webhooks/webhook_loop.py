"""A worker's part in the webhooks: empties the outbox and sends what is due, until the worker stops.

Every worker does so. Leases in Redis see to it that each try is made by one of them, and that an endpoint has at most
PLACES tries at once: a receiver that hangs occupies these and nothing else. A worker waits for the bell of the outbox,
for the end of one of its own tries, or for the next time at which a delivery is due.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.domain.webhook_messages import RUN_URL_PREFIX, DeliveryState
from stagebus.shared.observability.audit import audit
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.outage_log import OUTAGE
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, read_time_ms
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.store import webhook_deliveries, webhook_outbox
from stagebus.shared.store.webhook_deliveries import Try, TryResult
from stagebus.worker.execution.partition_bells import open_bell
from stagebus.worker.webhooks.retry_schedule import GONE, ReceiverAnswer, result_of
from stagebus.worker.webhooks.webhook_sender import TRY_MAX_S, WebhookSender

logger = logging.getLogger(__name__)

# A try ends long before its lease, so another worker sends again only if this one died.
LEASE_S: Final = 2 * TRY_MAX_S
IDLE_S: Final = 30.0
RETRY_S: Final = 1.0
# Deliveries that became due while they were asked for; a look at once would find the same.
PAUSE_MIN_S: Final = 0.05
# After the worker's runs are given back, the tries under way may end within this time.
STOP_GRACE_S: Final = 2.0

OnResult = Callable[[str, str], None]


class WebhookLoop:
    """Sends webhooks until it is stopped."""

    def __init__(self, redis: Redis, settings: Settings, webhooks: WebhookConfig, on_result: OnResult) -> None:
        """`on_result` is called with the endpoint and the result of each try: delivered, failed or waiting."""
        self._redis = redis
        self._webhooks = webhooks
        self._sender = WebhookSender(settings)
        self._on_result = on_result
        self._partitions = partitioning_of(redis).partitions
        self._bell = open_bell(redis, [partition.outbox_bell for partition in self._partitions])
        self._tries: set[asyncio.Task[None]] = set()
        self._ringing: asyncio.Task[object] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_first_step = True

    def start(self) -> None:
        """Starts to work."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Lets the tries under way end, for a moment, and makes the others due for other workers."""
        await cancel_and_wait(*([self._task] if self._task else []))
        if self._tries:
            await asyncio.wait(self._tries, timeout=STOP_GRACE_S)
        await cancel_and_wait(*self._tries, *([self._ringing] if self._ringing else []))
        await self._bell.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._wait(await self._step())
            except REDIS_AWAY as exc:
                OUTAGE.report_failure(logger, "the webhooks", exc)
                await asyncio.sleep(RETRY_S)
            except Exception:
                # If this loop ended, this worker would tell nobody anything until its restart.
                logger.exception("webhooks could not be sent; trying again")
                await asyncio.sleep(RETRY_S)

    async def _step(self) -> float:
        """Takes entries of the outboxes and starts the tries that are due; returns the seconds until the next look.

        A full outbox is taken in parts: meanwhile messages are sent, and too many open deliveries end.
        """
        if self._is_first_step:  # the file is as it was at the start of the process
            await webhook_deliveries.forget_gone(
                self._redis, {name: one.url for name, one in self._webhooks.endpoints.items()}
            )
            self._is_first_step = False
        has_more = await self._fan_out()
        if overflowed := await webhook_deliveries.end_overflow(self._redis):
            logger.warning("webhooks: too many open deliveries; %d of the oldest have failed", overflowed)
            self._on_result("", "overflow")
        pause_s = IDLE_S
        for due in await webhook_deliveries.list_due(self._redis):
            for delivery_id in due.delivery_ids:
                begun = await webhook_deliveries.acquire(self._redis, due.endpoint, delivery_id, LEASE_S)
                if begun is None:
                    pause_s = min(pause_s, RETRY_S)
                    continue
                task = asyncio.create_task(self._try(begun))
                self._tries.add(task)
                task.add_done_callback(self._tries.discard)
            if due.next_ms >= 0:
                pause_s = min(pause_s, due.next_ms / 1000)
        return 0 if has_more else max(pause_s, PAUSE_MIN_S)

    async def _fan_out(self) -> bool:
        """Makes deliveries of entries of all partitions; returns whether there may be more.

        A partition whose server is away keeps its entries until it is back.

        Raises:
            RedisError, OSError: no partition can be used.
        """
        fan_outs = (webhook_outbox.fan_out(self._redis, self._webhooks, partition) for partition in self._partitions)
        results = await asyncio.gather(*fan_outs, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in failures:
            if len(failures) == len(results) or not isinstance(failure, REDIS_AWAY):
                raise failure
            OUTAGE.report_failure(logger, "webhooks of some runs", failure)
        return any(result is True for result in results)

    async def _wait(self, pause_s: float) -> None:
        """Returns when the bell rings, one of this worker's tries ends, or the time is over."""
        if self._ringing is None:
            self._ringing = asyncio.create_task(self._bell.wait(IDLE_S))
        await asyncio.wait({self._ringing, *self._tries}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        if self._ringing.done():
            ringing, self._ringing = self._ringing, None
            ringing.result()

    async def _try(self, begun: Try) -> None:
        try:
            result = await self._send(begun)
        except asyncio.CancelledError:
            await self._settle(begun, TryResult(DeliveryState.WAITING, error="the worker stopped", is_counted=False))
            raise
        except REDIS_AWAY as exc:
            OUTAGE.report_failure(logger, "a webhook, whose lease expires", exc)
            return
        except Exception:
            logger.exception("webhook %s: internal error", begun.delivery.delivery_id)
            result = result_of(begun.delivery, ReceiverAnswer(error="internal error"), 0, random.random())  # noqa: S311 - jitter
        name = f"webhook {begun.delivery.delivery_id}: its result"
        await retry_while_redis_is_down(partial(self._settle, begun, result), name)
        self._on_result(begun.delivery.endpoint, result.state.value)

    async def _send(self, begun: Try) -> TryResult:
        delivery = begun.delivery
        target = self._webhooks.target_of(delivery.endpoint, delivery.url)
        is_of_file = not delivery.endpoint.startswith(RUN_URL_PREFIX)
        if target is None or (is_of_file and await self._is_gone(delivery.endpoint, target.url)):
            return TryResult(DeliveryState.FAILED, error="endpoint_gone")
        answer = await self._sender.send(delivery, target)
        if answer.status == GONE and is_of_file:
            logger.warning("webhook endpoint %s answered 410 and gets no more messages", delivery.endpoint)
            await webhook_deliveries.mark_gone(self._redis, delivery.endpoint, target.url)
        age_s = (await read_time_ms(self._redis) - delivery.since) / 1000
        return result_of(delivery, answer, age_s, random.random())  # noqa: S311 - jitter

    async def _is_gone(self, endpoint: str, url: str) -> bool:
        return await webhook_deliveries.is_gone(self._redis, endpoint, url)

    async def _settle(self, begun: Try, result: TryResult) -> None:
        delivery = begun.delivery
        if not await webhook_deliveries.settle(self._redis, delivery, begun.token, result):
            logger.info("webhook %s: its lease was lost; another worker sends it again", delivery.delivery_id)
        elif result.state is DeliveryState.FAILED:
            audit(
                "webhook.failed", subject="worker", tenant=delivery.tenant, run=delivery.run_id,
                delivery=delivery.delivery_id, error=result.error,
            )  # fmt: skip
