"""Counts each tenant's requests and open streams in Redis, over all gateways."""

from enum import StrEnum
from typing import Final, NamedTuple

from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import partitioning_of

# After this long without a report, a gateway's streams are no longer counted.
GATEWAY_TTL_MS: Final = 30_000

_RATE: Final = Script("rate", uses=("tenant_limit",))
_STREAMS: Final = Script("streams", uses=("tenant_limit",))


class Quota(NamedTuple):
    """A request quota after a request was counted; times in s."""

    is_allowed: bool
    limit: int
    window_s: int
    remaining: int
    reset_in_s: float
    retry_after_s: float


async def count_request(
    connection: ScriptConnection, tenant: str, requests_per_s: float, ticket_id: str = ""
) -> Quota | None:
    """Counts one request. Returns None if the tenant's requests, or those with one of its tickets, are not limited.

    Args:
        requests_per_s: the limit for a tenant that has none of its own.
        ticket_id: of the ticket that the request has. Each ticket has its own quota.
    """
    name = "ticket_requests_per_s" if ticket_id else "requests_per_s"
    home = partitioning_of(connection).of_name(tenant)
    match await _RATE(connection, [home.rate(tenant, ticket_id)], [tenant, requests_per_s, name, home.limits]):
        case [is_allowed, limit, window_s, remaining, full_in_us, retry_in_us]:
            return Quota(bool(is_allowed), limit, window_s, remaining, full_in_us / 1e6, retry_in_us / 1e6)
        case _:
            return None


class StreamsVerdict(StrEnum):
    """The answer to a gateway's report of its open streams."""

    UNLIMITED = "unlimited"
    OK = "ok"
    REFUSED = "refused"


async def report_streams(
    connection: ScriptConnection, tenant: str, gateway: str, count: int, streams_open: int, *, is_new: bool
) -> StreamsVerdict:
    """Reports how many streams of a tenant a gateway has open.

    Args:
        gateway: the gateway's id.
        streams_open: the limit for a tenant that has none of its own.
        is_new: whether the last of the streams is new, and refused if it exceeds the limit.
    """
    home = partitioning_of(connection).of_name(tenant)
    args = [tenant, gateway, count, int(is_new), streams_open, GATEWAY_TTL_MS, home.limits]
    return StreamsVerdict((await _STREAMS(connection, [home.streams(tenant)], args)).decode())
