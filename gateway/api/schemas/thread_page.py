"""A page of a thread's stream."""

from pydantic import Field, JsonValue

from stagebus.gateway.api.schemas.answers import Answer


class ThreadFrameView(Answer):
    """A frame of a thread's stream: an event of a run, or a frame of the thread itself."""

    id: str | None = Field(description="the cursor after this event; null for a frame without one")
    event: str = Field(description="the event's name, or `turn`, `turn_snapshot`, `turn_deleted`, `waiting` or `gap`")
    data: dict[str, JsonValue] = Field(description="the payload, described by `/schema/events.json`")


class ThreadEventPage(Answer):
    """A page of a thread's stream."""

    frames: list[ThreadFrameView] = Field(
        description="what the stream sends after the cursor, in order; a page that begins within a turn has its `turn` again"
    )
    last_event_id: str = Field(description="the cursor of the next page")
    has_more: bool = Field(description="whether the thread continued after this page when it was read")
    is_ended: bool = Field(
        description="with `until=idle`: whether the page has the end, no run was active and none waited"
    )
