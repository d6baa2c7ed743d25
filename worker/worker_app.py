"""The worker process: builds all parts from the settings, starts, drains and stops them."""

import asyncio
import logging
import os
import secrets
import socket
from contextlib import ExitStack
from typing import Any, Final

from stagebus.shared.config.providers import check_variables
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.observability.otel_export import start_export
from stagebus.shared.runtime.gc_tuning import freeze_startup_objects
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import connections, keys, redis_client
from stagebus.shared.storage.connections import open_channels, open_pipelined
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store import tool_catalog
from stagebus.shared.store.heartbeats import Heartbeat
from stagebus.shared.store.sweep import sweep_forever
from stagebus.shared.store.worker_capabilities import CAPABILITIES
from stagebus.worker.execution.lease import LeaseKeeper
from stagebus.worker.execution.leased_worker import LeasedWorker
from stagebus.worker.execution.runner import Runner
from stagebus.worker.execution.task_poller import TaskPoller
from stagebus.worker.model.model_client import ModelClient
from stagebus.worker.model.provider_limiter import ProviderLimiter
from stagebus.worker.tools.catalog_publisher import publish_forever
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.webhooks.webhook_loop import WebhookLoop
from stagebus.worker.worker_metrics import WorkerMetrics

logger = logging.getLogger(__name__)

# After the grace period, flushing the last events may take this long before the process exits anyway.
FLUSH_S: Final = 5.0


class WorkerApp:
    """One worker: a runner, its lease keeper and the queue loop."""

    def __init__(self, settings: Settings) -> None:
        """Builds everything; nothing is opened yet. Call it in the event loop that runs it.

        Raises:
            BadProviders, BadTool, BadWebhooks: a configuration file is invalid, or names an environment variable that is not set.
        """
        check_variables(settings)
        self._webhooks = WebhookConfig.from_settings(settings, reads_secrets=True)
        self._settings = settings
        # A restarted container has the same host name and process id as before. Under the same name, a new claim of its
        # runs would not count as a retry, and a run that kills its worker each time would never end.
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._redis: Redis = connections.connect(settings)
        self._connection = open_pipelined(self._redis, settings.redis_timeout_s)  # shared by the appends of all runs
        self._tools = ToolRegistry.from_settings(settings)
        self._keeper = LeaseKeeper(settings)
        self._metrics = WorkerMetrics()
        self._channels = open_channels(self._redis)
        self._provider_limiter = ProviderLimiter(self._redis, self._channels)
        self._model = ModelClient.from_settings(settings, self._provider_limiter)
        self._tasks = TaskPoller(self._redis, settings, self.name, self._tools.task_sources())
        self._runner = Runner(
            self._redis,
            settings,
            connection=self._connection,
            worker=self.name,
            model=self._model,
            tools=self._tools,
            keeper=self._keeper,
            channels=self._channels,
            metrics=self._metrics,
            tasks=self._tasks,
        )

        self._heartbeat = Heartbeat(self._redis, keys.WORKERS, self.name, self._state)

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT, then gives back the held runs.

        Raises:
            StorageUnfit: this Redis cannot be used; the message says what to change.
            OtelMissing: STAGEBUS_OTEL is set and OpenTelemetry's SDK is not installed.
            PortTaken: the metrics port is in use.
        """
        await connections.check_storage(self._redis)
        with ExitStack() as stack:
            if port := self._settings.worker_metrics_port:
                stack.callback(self._metrics.serve(self._settings.worker_metrics_host, port))
                self._metrics.loop_lag.start()
                stack.callback(self._metrics.loop_lag.stop)
            if self._settings.otel:
                registry = self._metrics.registry if self._settings.otel_metrics else None
                stack.callback(start_export("stagebus-worker", self.name, registry))
            await self._work()

    async def _work(self) -> None:
        await self._tools.start()
        published = self._tools.describe()
        await tool_catalog.publish_tools(self._redis, published)
        await self._channels.start()
        await self._model.warm_up()
        self._keeper.start()
        worker = LeasedWorker(
            self._redis,
            self._settings,
            connection=self._connection,
            run=self._runner.run,
            renew_now=self._keeper.renew_now,
            on_drain=self._drain,
        )
        sweeping = asyncio.create_task(sweep_forever(self._redis, self._settings, self.name, self._metrics.sweeps))
        publishing = asyncio.create_task(publish_forever(self._redis, self._tools, published))
        saying = asyncio.create_task(self._heartbeat.run())
        webhooks = WebhookLoop(self._redis, self._settings, self._webhooks, self._metrics.webhook_tried)
        if self._settings.has_webhooks:
            webhooks.start()
        self._tasks.start()
        freeze_startup_objects()
        logger.info("worker %s is ready for %d runs", self.name, self._settings.worker_concurrency)
        try:
            await worker.async_run()
        finally:
            await webhooks.stop()
            await self._tasks.stop()
            await cancel_and_wait(sweeping, publishing, saying)
            self._keeper.stop()
            await self._channels.stop()
            await self._connection.aclose()
            await self._model.aclose()
            await self._tools.aclose()
            await redis_client.close(self._redis)

    def _state(self) -> dict[str, Any]:
        """Returns the state that the heartbeat publishes."""
        runs = [self._run_state(run_id, attempt) for run_id, attempt in self._runner.held()]
        state = {"capabilities": CAPABILITIES, "concurrency": self._settings.worker_concurrency, "runs": runs}
        state["webhooks"] = self._webhooks.digest
        return {**state, "draining": True} if self._runner.is_draining else state

    def _run_state(self, run_id: str, attempt: int) -> dict[str, Any]:
        state = {"id": run_id, "attempt": attempt}
        provider = self._provider_limiter.provider_awaited_by(run_id)
        return {**state, "waits_for_provider": provider} if provider else state

    async def _drain(self) -> None:
        """Gives runs back at safe points first, and after the grace period anywhere."""
        self._runner.begin_drain()
        loop = asyncio.get_running_loop()
        loop.call_later(self._settings.drain_grace_s, self._runner.give_back_now)
        loop.call_later(self._settings.drain_grace_s + FLUSH_S, _give_up)


def _give_up() -> None:
    """Exits although Redis does not accept the last events; held runs continue elsewhere when their leases expire."""
    logger.error("the drain took too long; held runs continue on other workers when their leases expire")
    os._exit(1)
