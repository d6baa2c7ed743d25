"""The response of `GET /stats`."""

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.store import system_stats


class QueueStats(Answer):
    """The numbers of active runs by state."""

    waiting: int = Field(description="queued for a worker")
    held_back: int = Field(description="queued, but held back by their tenant's limit of running runs")
    running: int = Field(description="held by a worker, which may have crashed")
    parked: int = Field(description="waiting for a person")


class HeldRunStats(Answer):
    """A run that a worker holds."""

    id: str = Field(description="the run's id")
    attempt: int = Field(description="the number of the worker's attempt")
    lease_ends_in_ms: int = Field(
        description="time until the lease expires unless renewed; if negative, another worker may claim the run"
    )


class WorkerStats(Answer):
    """A worker as of its last heartbeat."""

    name: str = Field(description="the worker's name, which starts with `<host>:<pid>`")
    concurrency: int = Field(description="maximum number of concurrent runs")
    runs: list[HeldRunStats] = Field(description="the runs that it holds")
    seen_ms_ago: int = Field(description="time since its last heartbeat")


class Totals(Answer):
    """Totals over all runs that have ended in the lifetime of this Redis database."""

    events: int = Field(description="events in the runs' logs")
    runs_succeeded: int = Field(description="runs that succeeded")
    runs_failed: int = Field(description="runs that failed")
    runs_cancelled: int = Field(description="runs that were cancelled")
    tokens: int = Field(description="prompt and completion tokens")


class TotalsOfMinute(Totals):
    """Totals over the runs that ended in one minute."""

    began_s_ago: int = Field(description="seconds since the minute began, by Redis's clock; less than 60: it goes on")


class WebhookStats(Answer):
    """The deliveries of webhooks, over all tenants."""

    undistributed: int = Field(description="what happened and no worker with a webhooks file has looked at yet")
    open: dict[str, int] = Field(description="deliveries that wait for a try or its answer, by endpoint")
    oldest_s: float = Field(description="how long the oldest of these has waited")
    failed: int = Field(description="failed deliveries that are kept")
    gone: list[str] = Field(description="endpoints that answered 410 and get nothing more")
    files_differ: bool = Field(description="whether processes have different webhooks files, as during a deployment")


class Stats(Answer):
    """Statistics of the whole system. Those of workers and gateways come from heartbeats and are a few seconds old."""

    queue: QueueStats = Field(description="active runs")
    workers: list[WorkerStats] = Field(description="the workers with a recent heartbeat")
    streams_open: int = Field(description="open event streams of all gateways")
    totals: Totals = Field(description="ended runs")
    webhooks: WebhookStats = Field(description="deliveries of webhooks")
    last_hour: list[TotalsOfMinute] = Field(
        description="the minutes of the last hour in which runs ended, oldest first"
    )

    @classmethod
    def of(cls, read: system_stats.SystemStats) -> "Stats":
        """Returns the response."""
        counts, hooks = read.counts, read.webhooks.counts
        return cls(
            queue=QueueStats(
                waiting=counts.waiting, held_back=counts.throttled, running=counts.running, parked=counts.parked
            ),
            workers=[
                WorkerStats(
                    name=worker.name,
                    concurrency=worker.concurrency,
                    runs=[
                        HeldRunStats(id=run.run_id, attempt=run.attempt, lease_ends_in_ms=run.lease_ends_in_ms)
                        for run in worker.runs
                    ],
                    seen_ms_ago=worker.seen_ms_ago,
                )
                for worker in read.workers
            ],
            streams_open=read.streams_open,
            totals=Totals(**read.totals),
            webhooks=WebhookStats(
                undistributed=hooks.undistributed,
                open=hooks.open,
                oldest_s=hooks.oldest_ms / 1000,
                failed=hooks.failed,
                gone=hooks.gone,
                files_differ=read.webhooks.files_differ,
            ),
            last_hour=[TotalsOfMinute(began_s_ago=minute.began_s_ago, **minute.totals) for minute in read.last_hour],
        )
