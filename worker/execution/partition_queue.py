"""The queue of one partition, as a worker sees it: when to look at it again, and whether its server is away."""

import asyncio
from typing import NamedTuple

from stagebus.shared.storage.partition_keys import Partition
from stagebus.shared.storage.queue_scripts import DueRuns


class PartitionQueue:
    """State of a partition's queue between two looks.

    Attributes:
        look_at: the time of the next look, by the event loop's clock.
        notified_run: the run that the bell rang for.
        skipped: due runs of the last look that were held or refused; the next look asks for more.
        served_at: when the last run was acquired.
        recovery: the task that waits until the partition's server is back; None while it can be used.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.look_at = 0.0
        self.notified_run: str | None = None
        self.skipped = 0
        self.served_at = 0.0
        self.recovery: asyncio.Task[None] | None = None

    def look_soon(self) -> None:
        """Makes the next look due."""
        self.look_at = 0.0


class Look(NamedTuple):
    """The result of one look at a partition's queue.

    Attributes:
        is_acquired: the notified run was acquired.
        limit: how many runs were asked for.
        others: the due runs that the worker may acquire, and how long each has to wait compared with others.
    """

    queue: PartitionQueue
    is_acquired: bool
    limit: int
    due: DueRuns
    others: list[tuple[int, str]]


def choose(looks: list[Look], count: int) -> list[str]:
    """Returns the runs to acquire: those with the lowest lags; of equal ones those whose partition has waited longest."""
    if len(looks) > 1:
        looks = sorted(looks, key=lambda look: look.queue.served_at)
    candidates = [candidate for look in looks for candidate in look.others]
    if len(looks) > 1:
        candidates.sort(key=lambda candidate: candidate[0])
    return [run_id for _, run_id in candidates[: max(0, count)]]
