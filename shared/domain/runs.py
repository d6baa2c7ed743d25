"""The states, the stages and the stored record of a run."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.observability.trace import NO_TRACE, Trace


class RunStatus(StrEnum):
    """The state of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    PARKED = "parked"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# All allowed transitions; every other one is forbidden.
TRANSITIONS: Final[Mapping[RunStatus, frozenset[RunStatus]]] = {
    # The gateway may claim a queued run to end it; every claim passes through running.
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING}),
    # A claim of a running run starts the next attempt.
    RunStatus.RUNNING: frozenset(
        {RunStatus.RUNNING, RunStatus.PARKED, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    # The run waits for a person, and no worker holds it.
    RunStatus.PARKED: frozenset({RunStatus.RUNNING}),
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}
TERMINAL: Final = frozenset(status for status, nexts in TRANSITIONS.items() if not nexts)

# The terminal events and the status after each.
STATUS_BY_TERMINAL_EVENT: Final[Mapping[str, RunStatus]] = {
    "done": RunStatus.SUCCEEDED,
    "cancel": RunStatus.CANCELLED,
    "error": RunStatus.FAILED,
}

# The stages of a run in the order of one round. In later rounds they are called `extraction.2` and so on.
RUN_STAGE: Final = "run"
EXTRACTION: Final = "extraction"
TOOLS: Final = "tools"
SYNTHESIS: Final = "synthesis"
ROUNDS_MAX: Final = 16


def round_stage(stage: str, round_number: int) -> str:
    """Returns the id of a stage in a round. The first round has no number."""
    return stage if round_number == 1 else f"{stage}.{round_number}"


STAGE_IDS: Final = frozenset(
    {RUN_STAGE, SYNTHESIS} | {round_stage(s, n) for s in (EXTRACTION, TOOLS) for n in range(1, ROUNDS_MAX + 1)}
)


class RunRecord(NamedTuple):
    """The record of a run in Redis. Times are Unix ms by the clock of Redis, or 0 if they are not set yet."""

    run_id: str
    status: RunStatus
    attempt: int
    tries: int
    last_id: EventId
    tenant: str
    model: str
    request: dict[str, Any]
    created_at: int
    started_at: int
    finished_at: int
    worker: str
    cancel: bool
    cancel_reason: str | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    decisions: dict[str, str]  # encoded by `decisions.encode`, by call id
    parked_ms: int  # total parked time, without the current parking
    trace: Trace = NO_TRACE
    tokens: int = 0  # used so far: counted by the providers, or estimated
    finish_reason: str | None = None  # why the answer ended
    user: str = ""  # the person within the tenant, if one is known
    thread_key: str = ""  # the Redis key of the run's thread
    thread_id: str = ""  # as the client named it
    merged_into: str = ""  # the run that took this one's messages

    @property
    def is_terminal(self) -> bool:
        """Returns whether the run has ended."""
        return self.status in TERMINAL


def decode_run(run_id: str, fields: Mapping[bytes, bytes]) -> RunRecord | None:
    """Decodes the fields of the run's hash. Returns None if there is no run or its record is incomplete."""
    if not fields.get(b"status"):
        return None

    def text(name: str) -> str:
        return fields.get(name.encode(), b"").decode()

    def number(name: str) -> int:
        return int(fields.get(name.encode(), b"") or 0)

    def json(name: str) -> Any:
        raw = fields.get(name.encode())
        return orjson.loads(raw) if raw else None

    return RunRecord(
        run_id=run_id,
        status=_read_status(text("status"), is_over=bool(text("finished_at")), has_error=bool(text("error"))),
        attempt=number("attempt"),
        tries=number("tries"),
        last_id=parse_id(text("last_id")) if text("last_id") else START,
        tenant=text("tenant"),
        model=text("model"),
        request=json("request") or {},
        created_at=number("created_at"),
        started_at=number("started_at"),
        finished_at=number("finished_at"),
        worker=text("worker"),
        cancel=bool(number("cancel")),
        cancel_reason=text("cancel_reason") or None,
        error=json("error"),
        usage=json("usage"),
        decisions=json("decisions") or {},
        parked_ms=number("parked_ms"),
        trace=Trace(text("request_id"), text("traceparent"), run_id, text("baggage")),
        tokens=number("tokens"),
        finish_reason=text("finish_reason") or None,
        user=text("user"),
        thread_key=text("thread"),
        thread_id=text("thread_id"),
        merged_into=text("merged_into"),
    )


def _read_status(word: str, *, is_over: bool, has_error: bool) -> RunStatus:
    """Maps a status of a newer version to the nearest known one, since two versions work together during an upgrade."""
    try:
        return RunStatus(word)
    except ValueError:
        if not is_over:
            return RunStatus.RUNNING
        return RunStatus.FAILED if has_error else RunStatus.SUCCEEDED
