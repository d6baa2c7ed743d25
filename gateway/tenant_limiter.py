"""A tenant's limits over all gateways: requests per second, also with each of its tickets, and open streams.

    RateLimit-Policy: "requests";q=20;w=1        20 requests per second
    RateLimit: "requests";r=12;t=1               12 are left, and the quota is full again in 1 s

The counts are in Redis. A tenant without limits costs one look-up every `CACHE_TTL_S`. While
Redis is away no request is limited: none could do anything then.
Spec: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/
"""

import asyncio
import logging
from collections import Counter
from math import ceil
from typing import Final, Literal
from uuid import uuid4

from stagebus.shared.domain.limits import TenantLimits
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.runtime.ttl_cache import TtlCache
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.redis_client import REDIS_AWAY
from stagebus.shared.store import quotas
from stagebus.shared.store.quotas import GATEWAY_TTL_MS, Quota, StreamsVerdict

logger = logging.getLogger(__name__)

# How long a gateway may take to notice a new limit of a tenant that had none.
CACHE_TTL_S: Final = 5.0
CACHE_ENTRIES_MAX: Final = 10_000

_Kind = Literal["requests", "ticket requests", "streams"]


class TenantLimiter:
    """Counts requests and open streams in Redis, and caches which tenants have no limit."""

    def __init__(self, connection: ScriptConnection, limits: TenantLimits) -> None:
        """A pipelined connection costs a request less than half of what a pool does.

        Args:
            limits: the defaults for tenants without limits of their own.
        """
        self._connection = connection
        self._limits = limits
        self._gateway = uuid4().hex
        self._streams: Counter[str] = Counter()
        self._unlimited: TtlCache[tuple[_Kind, str], bool] = TtlCache(CACHE_TTL_S, CACHE_ENTRIES_MAX)
        self._reporting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to report this gateway's open streams periodically."""
        self._reporting = asyncio.create_task(self._report_forever())

    async def stop(self) -> None:
        """Stops reporting; the other gateways drop this one's streams after `GATEWAY_TTL_MS`."""
        if self._reporting is not None:
            await cancel_and_wait(self._reporting)

    async def count_request(self, tenant: str, ticket_id: str = "") -> Quota | None:
        """Counts one request. Returns the quota, or None if such requests are not limited.

        Args:
            ticket_id: of the ticket that the request has. It then counts against the ticket's quota, so that a shared
                link's holder cannot use up the tenant's.
        """
        kind: _Kind = "ticket requests" if ticket_id else "requests"
        if self._unlimited.get((kind, tenant)):
            return None
        limit = self._limits.ticket_requests_per_s if ticket_id else self._limits.requests_per_s
        try:
            quota = await quotas.count_request(self._connection, tenant, limit, ticket_id)
        except REDIS_AWAY as exc:
            logger.debug("Redis is away, a request is not counted: %s", exc)
            return None
        if quota is None:
            self._unlimited[kind, tenant] = True
        return quota

    async def begin_stream(self, tenant: str) -> bool:
        """Counts one more open stream if the tenant may have it. If true, call `end_stream` later."""
        self._streams[tenant] += 1
        try:
            may_open = await self._report(tenant, is_new=True) is not StreamsVerdict.REFUSED
        except BaseException:
            self._streams[tenant] -= 1
            raise
        if not may_open:
            self._streams[tenant] -= 1
        return may_open

    async def end_stream(self, tenant: str) -> None:
        """Counts one open stream less."""
        self._streams[tenant] -= 1
        await asyncio.shield(self._report(tenant))

    async def _report(self, tenant: str, *, is_new: bool = False) -> StreamsVerdict:
        if self._unlimited.get(("streams", tenant)):
            return StreamsVerdict.UNLIMITED
        count, limit = self._streams[tenant], self._limits.streams_open
        try:
            verdict = await quotas.report_streams(self._connection, tenant, self._gateway, count, limit, is_new=is_new)
        except REDIS_AWAY as exc:
            logger.debug("Redis is away, a stream is not counted: %s", exc)
            return StreamsVerdict.UNLIMITED
        if verdict is StreamsVerdict.UNLIMITED:
            self._unlimited["streams", tenant] = True
        return verdict

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(GATEWAY_TTL_MS / 1000 / 3)
            try:
                for tenant in [tenant for tenant, count in self._streams.items() if count]:
                    await self._report(tenant)
            except Exception:
                # If the task ended here, the other gateways would drop this one's streams and admit as many again.
                logger.exception("could not report the numbers of open streams; trying again")
            self._streams += Counter()  # drops tenants at 0


def ratelimit_headers(quota: Quota) -> dict[str, str]:
    """Returns the RateLimit headers that tell a client its quota."""
    return {
        "RateLimit-Policy": f'"requests";q={quota.limit};w={quota.window_s}',
        "RateLimit": f'"requests";r={quota.remaining};t={ceil(quota.reset_in_s)}',
    }
