"""A page of a run's events."""

from pydantic import Field, JsonValue

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.domain.events import Gap, WaitingFor


class StreamedEvent(Answer):
    """An event of a run's log, as in the event stream."""

    id: str = Field(description="the cursor after this event")
    event: str = Field(description="the event's name")
    data: dict[str, JsonValue] = Field(description="the payload, described by `/schema/events.json`")


class EventPage(Answer):
    """A page of a run's events."""

    events: list[StreamedEvent] = Field(description="the events after the cursor, in order")
    last_event_id: str = Field(description="the cursor of the next page")
    has_more: bool = Field(description="whether the log continued after this page when it was read")
    is_ended: bool = Field(description="whether the page contains the run's last event")
    gap: Gap | None = Field(default=None, description="set if the cursor is not in the log")
    waiting_for: WaitingFor | None = Field(
        default=None, description="with `wait`: what the run waits for if it has been silent, as in the event `status`"
    )
