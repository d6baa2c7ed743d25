"""The body of POST /runs/{run_id}/cancel."""

from typing import Annotated, Final

from pydantic import Field

from stagebus.gateway.api.schemas.chat_messages import WireModel

REASON_MAX_CHARS: Final = 500


class CancelRequest(WireModel):
    """The details of a cancellation."""

    reason: Annotated[str, Field(min_length=1, max_length=REASON_MAX_CHARS)] | None = Field(
        default=None, description="why, for people; it stands in the run's `cancel` event; the first reason stays"
    )
