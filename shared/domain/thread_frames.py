"""The frames of a thread's event stream that are not events of a run's log. Docstrings are shown in docs/http-api.md."""

from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from stagebus.shared.domain.events import Json
from stagebus.shared.domain.threads import OnActive

_PARENT: Final = "the turn that it follows; null at the root"


class ThreadFrame(BaseModel):
    """The base class of these frames. `event` is the name in the stream."""

    model_config = ConfigDict(frozen=True, json_schema_mode_override="serialization")

    event: ClassVar[str]


class TurnBegun(ThreadFrame):
    """A turn begins: the events that follow are those of its run. A frame without an id.

    It comes again if a client reconnects within the turn.
    """

    event: ClassVar[str] = "turn"
    run_id: str = Field(description="the turn's run")
    parent_run_id: str | None = Field(description=_PARENT)
    seq: int = Field(description="its place among all turns of the thread, from 1 on")
    messages: list[Json] = Field(description="the new messages of its request")


class TurnSnapshot(ThreadFrame):
    """A turn whose log has expired, in place of its `turn` frame and its events.

    Its id is that of the turn's last event, so a client continues with the next turn.
    """

    event: ClassVar[str] = "turn_snapshot"
    run_id: str = Field(description="the turn's run")
    parent_run_id: str | None = Field(description=_PARENT)
    seq: int = Field(description="its place among all turns of the thread, from 1 on")
    status: str = Field(description="how it ended: `succeeded`, `failed`, `cancelled`, or `lost` if Redis lost the run")
    messages: list[Json] = Field(description="the new messages of its request")
    result: list[Json] = Field(
        description="its result: the model's calls with their results, and its answer, which has `partial` if the run "
        "was stopped"
    )


class TurnDeleted(ThreadFrame):
    """A turn whose run was deleted: discard what you have of it. Its children stay, and follow what came before it.

    In place of the turn, the frame's id is the cursor after it. If a turn before the client's place is deleted, it has none.
    """

    event: ClassVar[str] = "turn_deleted"
    run_id: str = Field(description="the turn's run")
    parent_run_id: str | None = Field(description=_PARENT)
    seq: int = Field(description="its place among all turns of the thread, from 1 on")


class WaitingInThread(BaseModel):
    """A run that waits for its turn."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(description="the waiting run")
    position: int = Field(description="its place among the waiting runs; 1 is next")
    on_active: OnActive = Field(description="why it waits: `enqueue`, `interrupt` or `steer`")
    steers: str | None = Field(default=None, description="the run that its messages may join")


class WaitingChanged(ThreadFrame):
    """The runs that wait for their turn have changed. A frame without an id."""

    event: ClassVar[str] = "waiting"
    runs: list[WaitingInThread] = Field(description="all waiting runs, the next one first")


class ThreadGap(ThreadFrame):
    """The client's cursor is not in the thread, for example because Redis lost events. A frame without an id.

    Discard what you have of the run from `earliest` on, of the whole run if `earliest` is null, and of the whole thread if
    `run_id` is null. The stream sends again what there is.
    """

    event: ClassVar[str] = "gap"
    run_id: str | None = Field(description="the run in whose log the cursor is not; null: the thread has no such turn")
    requested: str = Field(description="the cursor that the client sent")
    earliest: str | None = Field(default=None, description="the first id of the run's log; null if it has expired")
    latest: str | None = Field(default=None, description="the last id of the run's log; null if it has expired")


THREAD_FRAMES: Final[tuple[type[ThreadFrame], ...]] = (
    TurnBegun, TurnSnapshot, TurnDeleted, WaitingChanged, ThreadGap,
)  # fmt: skip
