"""The outcome of a worker's attempt: what the queue does with the run's job."""

from enum import StrEnum
from typing import NamedTuple

from stagebus.worker.stages.answer_source import Parked


class Disposition(StrEnum):
    """The step that the queue takes, see `LeasedWorker`."""

    FINISH = "finish"  # the run has ended: remove the job
    RELEASE = "release"  # give the run back, due immediately
    PARK = "park"  # give the run back until a decision or a result arrives or a call expires
    ABANDON = "abandon"  # another attempt owns the run: touch nothing
    RETURNED = "returned"  # the run waits for its turn in its thread; the claim has given it back
    REPLACE = "replace"  # the job is unreadable, not the run: queue a new job


class Outcome(NamedTuple):
    """The outcome of a worker's work on a run; `attempt` is set with RELEASE and PARK, `parked` and `tenant` with PARK."""

    disposition: Disposition
    attempt: int | None = None
    parked: Parked | None = None
    tenant: str = ""
