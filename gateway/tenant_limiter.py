"""How much a tenant may ask of all gateways together: requests a second, and streams at once.

    RateLimit-Policy: "requests";q=20;w=1        twenty a second
    RateLimit: "requests";r=12;t=1               twelve are left, and all of them are back in a second

What is counted is in Redis. A tenant without limits costs nothing but a look every `REMEMBER_S`;
where Redis is away everybody is let through, since nothing can be done there anyway.
Spec: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from typing import Final
from uuid import uuid4

from stagebus.shared.domain.limits import TenantLimits
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis
from stagebus.shared.store import quotas
from stagebus.shared.store.quotas import GATEWAY_TTL_MS, Quota, Told

logger = logging.getLogger(__name__)

# How late a gateway may hear of a limit for a tenant that had none.
REMEMBER_S: Final = 5.0
REMEMBERED_MAX: Final = 10_000


class TenantLimiter:
    """Asks Redis for those who have limits, and remembers who has none."""

    def __init__(self, redis: Redis | PipelinedConnection, limits: TenantLimits) -> None:
        """A line costs a request less than half of what a pool does; what breaks with it is not counted again."""
        self._redis = redis
        self._limits = limits
        self._gateway = uuid4().hex
        self._streams: Counter[str] = Counter()
        self._free_until: dict[tuple[str, str], float] = {}
        self._telling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tell the numbers of open streams again and again."""
        self._telling = asyncio.create_task(self._tell_all())

    async def stop(self) -> None:
        """Tell nothing more; the others forget what this one held."""
        if self._telling is not None:
            await cancel_and_wait(self._telling)

    @asynccontextmanager
    async def request(self) -> AsyncIterator["Counted"]:
        """A request that is to be counted once it is known whose it is, or begun to be as soon as that is likely."""
        counted = Counted(self)
        try:
            yield counted
        finally:
            await counted.settle()

    def is_free(self, tenant: str) -> bool:
        """Whether a request of the tenant costs nothing, as far as is remembered."""
        return self._is_free("requests", tenant)

    async def count_request(self, tenant: str) -> Quota | None:
        """Count one request; None where nothing limits it."""
        if self._is_free("requests", tenant):
            return None
        try:
            quota = await quotas.count_request(self._redis, tenant, self._limits.requests_per_s)
        except REDIS_AWAY as exc:
            logger.debug("Redis is away, a request is not counted: %s", exc)
            return None
        if quota is None:
            self._remember_free("requests", tenant)
        return quota

    async def begin_stream(self, tenant: str) -> bool:
        """One more open stream, if there may be one more; `end_stream` has to follow."""
        self._streams[tenant] += 1
        try:
            may_open = await self._tell(tenant, is_new=True) is not Told.REFUSED
        except BaseException:
            self._streams[tenant] -= 1
            raise
        if not may_open:
            self._streams[tenant] -= 1
        return may_open

    async def end_stream(self, tenant: str) -> None:
        """A stream that was begun is over."""
        self._streams[tenant] -= 1
        await asyncio.shield(self._tell(tenant))

    async def _tell(self, tenant: str, *, is_new: bool = False) -> Told:
        if self._is_free("streams", tenant):
            return Told.UNLIMITED
        count, limit = self._streams[tenant], self._limits.streams_open
        try:
            told = await quotas.tell_streams(self._redis, tenant, self._gateway, count, limit, is_new=is_new)
        except REDIS_AWAY as exc:
            logger.debug("Redis is away, a stream is not counted: %s", exc)
            return Told.UNLIMITED
        if told is Told.UNLIMITED:
            self._remember_free("streams", tenant)
        return told

    async def _tell_all(self) -> None:
        while True:
            await asyncio.sleep(GATEWAY_TTL_MS / 1000 / 3)
            try:
                for tenant in [tenant for tenant, count in self._streams.items() if count]:
                    await self._tell(tenant)
            except Exception:
                # The other gateways would forget this one's streams, and let in as many anew.
                logger.exception("the numbers of open streams could not be told; trying again")
            self._streams += Counter()  # drops those at 0

    def _is_free(self, what: str, tenant: str) -> bool:
        return time.monotonic() < self._free_until.get((what, tenant), 0.0)

    def _remember_free(self, what: str, tenant: str) -> None:
        if len(self._free_until) >= REMEMBERED_MAX:
            self._free_until.clear()
        self._free_until[what, tenant] = time.monotonic() + REMEMBER_S


class Counted:
    """One request's count."""

    def __init__(self, limiter: TenantLimiter) -> None:
        self._limiter = limiter
        self._tenant = ""
        self._begun: asyncio.Task[Quota | None] | None = None

    def begin(self, tenant: str) -> None:
        """Count it for the tenant, beside whatever else is asked of Redis."""
        if self._begun is None and not self._limiter.is_free(tenant):
            self._tenant = tenant
            self._begun = asyncio.create_task(self._limiter.count_request(tenant))

    async def for_tenant(self, tenant: str) -> Quota | None:
        """What the count came to; None where nothing limits the tenant."""
        if self._begun is not None and self._tenant == tenant:
            return await self._begun
        return await self._limiter.count_request(tenant)

    async def settle(self) -> None:
        """Leave nothing under way: what was begun for somebody who was not let in after all."""
        if self._begun is not None:
            await asyncio.wait({self._begun})


def headers_of(quota: Quota) -> dict[str, str]:
    """What a client may know of its quota."""
    return {
        "RateLimit-Policy": f'"requests";q={quota.quota};w={quota.window_s}',
        "RateLimit": f'"requests";r={quota.remaining};t={ceil(quota.full_in_s)}',
    }
