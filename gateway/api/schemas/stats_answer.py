"""What `GET /stats` answers."""

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.store import system_stats


class QueueStats(Answer):
    """The runs that have not ended, by what they wait for."""

    waiting: int = Field(description="due, and in no worker's hands")
    held_back: int = Field(description="due, but their tenant has enough running")
    running: int = Field(description="in a worker's hands, or left behind by one that died")
    parked: int = Field(description="they wait for a person")


class HeldRunStats(Answer):
    """A run that a worker holds."""

    id: str
    attempt: int
    lease_ends_in_ms: int = Field(description="unless it is renewed; below 0: another worker may take the run")


class WorkerStats(Answer):
    """A worker, as it spoke of itself last."""

    name: str = Field(description="host:pid")
    concurrency: int = Field(description="how many runs it takes at most")
    runs: list[HeldRunStats]
    seen_ms_ago: int


class Totals(Answer):
    """What all runs came to that have ended since Redis was new."""

    events: int
    runs_succeeded: int
    runs_failed: int
    runs_cancelled: int
    tokens: int


class Stats(Answer):
    """The whole system; what workers and gateways say of themselves is a few seconds old."""

    queue: QueueStats
    workers: list[WorkerStats]
    streams_open: int = Field(description="over all gateways")
    totals: Totals

    @classmethod
    def of(cls, read: system_stats.SystemStats) -> "Stats":
        """The answer."""
        counts = read.counts
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
        )
