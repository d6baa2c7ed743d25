"""Reads the progress of a run from its log, so that a new attempt continues where the last one stopped."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from stagebus.shared.domain import model_items
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import (
    ApprovalDecided,
    ApprovalRequired,
    CallDeferred,
    InputRequired,
    StageCompleted,
    ToolCall,
    ToolResult,
)
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.errors import LogIncomplete
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage.redis_client import Redis
from stagebus.worker.stages import approval_gate
from stagebus.worker.stages.call_plan import Checkpoints, LoggedApprovals

C = TypeVar("C", ToolCall, CallDeferred, ToolResult, ApprovalRequired, InputRequired, ApprovalDecided)


@dataclass(frozen=True)
class History:
    """The completed stages with their last event and its id, and the incomplete ones with the id of their first event."""

    completed: Mapping[str, StageCompleted]
    begun: Mapping[str, EventId]
    completed_ids: Mapping[str, EventId] = field(default_factory=dict)


async def read_history(redis: Redis, run_id: str, stage_ids: list[str]) -> History:
    """Reads the first and last event of every stage; the last event of a complete stage holds its result.

    Args:
        stage_ids: the stages begun, from the claim. For a new run, nothing has to be read.

    Raises:
        LogIncomplete: the events of a stage that was begun are gone, or the list of stages is.
    """
    completed: dict[str, StageCompleted] = {}
    begun: dict[str, EventId] = {}
    completed_ids: dict[str, EventId] = {}
    to_read = [stage_id for stage_id in stage_ids if stage_id != RUN_STAGE]
    ends = await log_reader.read_stage_ends(redis, run_id, to_read)
    if len(ends) < len(to_read) or not stage_ids:
        raise LogIncomplete
    for first, last in ends:
        if last.event == StageCompleted.event.encode():
            completed[last.stage_id] = StageCompleted.model_validate_json(last.data)
            completed_ids[last.stage_id] = last.event_id
        else:
            begun[first.stage_id] = first.event_id
    if completed:
        completed |= await _with_items(redis, run_id, completed)
    return History(completed, begun, completed_ids)


async def _with_items(redis: Redis, run_id: str, completed: Mapping[str, StageCompleted]) -> dict[str, StageCompleted]:
    """Returns the stages that have model items, with them. Items that cannot be read are left out: no stage needs them."""
    stages: dict[str, StageCompleted] = {}
    for stage_id, data in (await log_reader.read_model_items(redis, run_id)).items():
        with suppress(ValueError):
            if stage_id in completed:
                stages[stage_id] = completed[stage_id].model_copy(update={"items": model_items.decode(data)})
    return stages


async def read_checkpoints(redis: Redis, run_id: str, stage_id: str) -> Checkpoints:
    """Reads the progress of a tools stage from the log."""
    return checkpoints_of(await log_reader.read_stage(redis, run_id, stage_id))


def checkpoints_of(events: list[StoredEvent]) -> Checkpoints:
    """Collects the started and waiting calls, the results and the approvals from a tools stage's events."""
    started, results = _by_call(events, ToolCall), _by_call(events, ToolResult)
    asked = _by_call(events, ApprovalRequired) | _by_call(events, InputRequired)
    decided = _by_call(events, ApprovalDecided)
    return Checkpoints(
        frozenset(started),
        results,
        LoggedApprovals(
            {call_id: event.expires_at for call_id, event in asked.items()},
            {call_id: approval_gate.decode(event) for call_id, event in decided.items()},
        ),
        {call_id: event.expires_at for call_id, event in _by_call(events, CallDeferred).items()},
    )


def _by_call(events: list[StoredEvent], kind: type[C]) -> dict[str, C]:
    found = [kind.model_validate_json(e.data) for e in events if e.event == kind.event.encode()]
    return {event.call_id: event for event in found}
