"""The events of a run as classes, as returned by `RunEvent.typed`; `GET /schema/events.json` describes them all.

match received.typed:
    case ToolCall(name=name): ...
"""

from stagebus.shared.domain.events import (
    EVENT_BY_NAME,
    ApprovalDecided,
    ApprovalRequired,
    Cancel,
    Done,
    Error,
    Event,
    Gap,
    HistoryComposed,
    InputRequired,
    MergedInto,
    MessageAdded,
    RetryScheduled,
    RunQueued,
    RunStarted,
    StageCompleted,
    StageRestarted,
    StageStarted,
    StreamStatus,
    ToolCall,
    ToolCompletionChunk,
    ToolProgress,
    ToolResult,
    ToolSummary,
)
from stagebus.shared.domain.usage import Cost, Usage

__all__ = [
    "EVENT_BY_NAME", "ApprovalDecided", "ApprovalRequired", "Cancel", "Cost", "Done", "Error", "Event", "Gap",
    "HistoryComposed", "InputRequired", "MergedInto", "MessageAdded", "RetryScheduled", "RunQueued", "RunStarted",
    "StageCompleted", "StageRestarted", "StageStarted", "StreamStatus", "ToolCall", "ToolCompletionChunk", "ToolProgress",
    "ToolResult", "ToolSummary", "Usage",
]  # fmt: skip
