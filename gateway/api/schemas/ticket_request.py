"""The body of POST /runs/{run_id}/ticket."""

from typing import Any, Final, NamedTuple

from pydantic import Field

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.gateway.api.schemas.validation import invalid_fields, parse_form
from stagebus.shared.config.settings import Settings

TTL_MIN_S: Final = 10
# A link that is passed on is looked at later than a page that asks for itself.
SHARE_TTL_S: Final = 86400


class TicketRequest(WireModel):
    """For how long, and whether for somebody else."""

    share: bool = Field(default=False, description="a link to pass on: good for a day where `ttl_s` is not given")
    ttl_s: int | None = Field(
        default=None, ge=TTL_MIN_S, description="how long it is good; STAGEBUS_TICKET_TTL_MAX_S at the most"
    )


class AskedTicket(NamedTuple):
    """What a body asks for, with every default filled in."""

    ttl_s: float
    share: bool


def parse_ticket_request(body: dict[str, Any], settings: Settings) -> AskedTicket:
    """The ticket that a body asks for.

    Raises:
        InvalidRequest: it does not hold; every wrong field is named.
    """
    form = parse_form(TicketRequest, body)
    ttl_max_s = settings.ticket_ttl_max_s
    if form.ttl_s is not None and form.ttl_s > ttl_max_s:
        raise invalid_fields([("ttl_s", f"at most {ttl_max_s:g} s")])
    default_s = min(SHARE_TTL_S, ttl_max_s) if form.share else settings.ticket_ttl_s
    return AskedTicket(default_s if form.ttl_s is None else form.ttl_s, form.share)
