"""A tenant's requests and open streams, counted in Redis over all gateways."""

from enum import StrEnum
from typing import Final, NamedTuple

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.redis_client import Redis

# A gateway that has said nothing for this long holds no streams any more.
GATEWAY_TTL_MS: Final = 30_000

_RATE: Final = Script("rate")
_STREAMS: Final = Script("streams")


class Quota(NamedTuple):
    """Where a tenant stands with its requests; times in s."""

    is_kept: bool
    quota: int
    window_s: int
    remaining: int
    full_in_s: float
    retry_in_s: float


async def count_request(redis: Redis | PipelinedConnection, tenant: str, requests_per_s: float) -> Quota | None:
    """Count one request; None where the tenant may make any number.

    Args:
        requests_per_s: the limit of a tenant that has none of its own.
    """
    match await _RATE(redis, [keys.rate(tenant), keys.LIMITS], [tenant, requests_per_s]):
        case [is_kept, quota, window_s, remaining, full_in_us, retry_in_us]:
            return Quota(bool(is_kept), quota, window_s, remaining, full_in_us / 1e6, retry_in_us / 1e6)
        case _:
            return None


class Told(StrEnum):
    """What Redis makes of a gateway's number of streams."""

    UNLIMITED = "unlimited"
    OK = "ok"
    REFUSED = "refused"


async def tell_streams(
    redis: Redis | PipelinedConnection, tenant: str, gateway: str, count: int, streams_open: int, *, is_new: bool
) -> Told:
    """Say how many streams of the tenant this gateway holds; with `is_new`, ask whether the last of them may be."""
    args = [tenant, gateway, count, int(is_new), streams_open, GATEWAY_TTL_MS]
    return Told((await _STREAMS(redis, [keys.streams(tenant), keys.LIMITS], args)).decode())
