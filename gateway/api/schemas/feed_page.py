"""The entries of a tenant's feed, and a page of them."""

from pydantic import Field

from stagebus.gateway.api.schemas.answers import Answer
from stagebus.shared.domain.events import Gap


class FeedData(Answer):
    """One change of a run. It has no texts of users; `GET /runs/{run_id}` has the run."""

    run_id: str = Field(description="the run")
    thread_id: str | None = Field(default=None, description="the run's thread, if it has one")
    user: str | None = Field(default=None, description="the person whose run it is, if it has one")
    status: str = Field(description="the run's state after it: queued, running, parked, a final state, lost or deleted")
    code: str | None = Field(default=None, description="why the run failed: the `code` of its error")
    event_id: str | None = Field(default=None, description="the last event of the run's log at that time")
    at: int = Field(description="when it happened, Unix ms by Redis's clock")


class FeedEntry(Answer):
    """An entry of the feed."""

    id: str = Field(description="the cursor after this entry")
    event: str = Field(description="run_created, run_started, run_waiting, run_ended or run_deleted")
    data: FeedData


class FeedPage(Answer):
    """A page of a tenant's feed."""

    events: list[FeedEntry] = Field(description="the entries after the cursor, in order")
    last_event_id: str = Field(description="the cursor of the next page")
    has_more: bool = Field(description="whether the feed continued after this page when it was read")
    gap: Gap | None = Field(default=None, description="set if the feed no longer has the cursor: list the runs again")
