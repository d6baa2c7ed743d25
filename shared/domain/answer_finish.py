"""Why a run's answer ended: the finish reason of its last model stage; sans-IO."""

from collections.abc import Mapping
from typing import Final

from stagebus.shared.domain.events import Error, Event, StageCompleted
from stagebus.shared.domain.runs import RUN_STAGE, TOOLS

# The finish reason of an answer that was cut by a cancel.
CANCELLED: Final = "cancelled"


def finish_reason_of(stages: Mapping[str, StageCompleted | None], end: Event) -> str | None:
    """Returns the model's reason; if its last stage is not complete, `cancelled` or the code of the run's error.

    Args:
        stages: the stages that the run has begun, in order; None if a stage is not complete.
        end: the run's terminal event.

    Returns:
        None if no model stage has begun, or the provider gave no reason.
    """
    last = next((stage_id for stage_id in reversed(list(stages)) if not stage_id.startswith((TOOLS, RUN_STAGE))), None)
    if last is None:
        return None
    completed = stages[last]
    if completed is None:
        return end.code if isinstance(end, Error) else CANCELLED
    reason = completed.result.get("finish_reason")
    return reason if isinstance(reason, str) else None
