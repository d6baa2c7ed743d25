"""The body of POST /runs/{run_id}/ticket."""

from typing import Any, Final, NamedTuple

from pydantic import Field

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.config.settings import Settings

TTL_MIN_S: Final = 10
# A shared link is opened later than the ticket that a page requests for its own use.
SHARE_TTL_S: Final = 86400


class TicketRequest(WireModel):
    """The options of a new ticket."""

    share: bool = Field(
        default=False, description="the ticket is for a shared link: valid for a day unless `ttl_s` is set"
    )
    ttl_s: int | None = Field(
        default=None,
        ge=TTL_MIN_S,
        description="how long the ticket is valid, in seconds, at most STAGEBUS_TICKET_TTL_MAX_S",
    )
    calls: bool = Field(
        default=False,
        description="the holder may also claim the run's waiting calls and give their results; needs the scope `calls`",
    )


class TicketOptions(NamedTuple):
    """The options of a ticket, with all defaults filled in."""

    ttl_s: float
    share: bool
    calls: bool


def parse_ticket_request(body: dict[str, Any], settings: Settings) -> TicketOptions:
    """Parses a request body.

    Raises:
        InvalidRequest: the error names every invalid field.
    """
    form = parse_form(TicketRequest, body)
    ttl_max_s = settings.ticket_ttl_max_s
    if form.ttl_s is not None and form.ttl_s > ttl_max_s:
        raise invalid_fields([("ttl_s", f"at most {ttl_max_s:g} s")])
    default_s = min(SHARE_TTL_S, ttl_max_s) if form.share else settings.ticket_ttl_s
    return TicketOptions(default_s if form.ttl_s is None else form.ttl_s, form.share, form.calls)
