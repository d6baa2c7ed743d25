"""Deliveries of webhooks: their tries, their results, and lists of them. `Delivery` describes one.

    open      ── due ──▶ being sent, with a lease ──▶ delivered
                 ▲            │                  └──▶ failed
                 └── backoff ─┘

At most OPEN_MAX are open. Ended ones are kept for a while, so that operators can look at them and send them again.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import uuid4

from stagebus.shared.domain.webhook_messages import Delivery, DeliveryState
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import partitioning_of
from stagebus.shared.storage.redis_client import Redis, read_time_ms
from stagebus.shared.storage.webhook_keys import webhook_keys_of
from stagebus.shared.webhook_errors import DeliveryNotFound

OPEN_MAX: Final = 100_000
OVERFLOW_BATCH: Final = 100
# Of one endpoint at once, over all workers.
PLACES: Final = 4
KEPT_MAX: Final[Mapping[DeliveryState, int]] = {DeliveryState.DELIVERED: 10_000, DeliveryState.FAILED: 100_000}
KEPT_S: Final[Mapping[DeliveryState, int]] = {DeliveryState.DELIVERED: 86_400, DeliveryState.FAILED: 7 * 86_400}
# Deliveries examined for one page of a list.
EXAMINED_MAX: Final = 500
# A read gets this many extra entries, since those of the cursor's own millisecond may come first.
SAME_MS: Final = 128
ERROR_MAX_CHARS: Final = 200

_ACQUIRE: Final = Script("webhook_acquire")
_RESEND: Final = Script("webhook_resend")
_SETTLE: Final = Script("webhook_settle")


class DueDeliveries(NamedTuple):
    """An endpoint's deliveries that may be tried now, and the ms until it may have further ones; -1: none is open."""

    endpoint: str
    delivery_ids: list[str]
    next_ms: int


async def list_due(redis: Redis) -> list[DueDeliveries]:
    """Returns the due deliveries of every endpoint, as many as it has places left."""
    names = webhook_keys_of(redis)
    endpoints = [name.decode() for name in await redis.hkeys(names.endpoints)]  # type: ignore[misc]
    if not endpoints:
        return []
    now = await read_time_ms(redis)
    async with redis.pipeline(transaction=False) as pipe:
        for endpoint in endpoints:
            pipe.zrangebyscore(names.trying(endpoint), f"({now}", "+inf", withscores=True)
            pipe.zrangebyscore(names.due(endpoint), "-inf", now, start=0, num=PLACES)
            pipe.zrangebyscore(names.due(endpoint), f"({now}", "+inf", start=0, num=1, withscores=True)
        replies = await pipe.execute()
    return [_due_of(endpoint, now, *replies[3 * i : 3 * i + 3]) for i, endpoint in enumerate(endpoints)]


def _due_of(
    endpoint: str, now: int, trying: list[tuple[bytes, float]], due: list[bytes], later: list[tuple[bytes, float]]
) -> DueDeliveries:
    places = max(0, PLACES - len(trying))
    # Without a place left, the next one is free at the end of a lease at the latest.
    next_times = [score for _, score in (later if places else trying)]
    next_ms = max(0, int(min(next_times)) - now) if next_times else -1
    return DueDeliveries(endpoint, [delivery_id.decode() for delivery_id in due[:places]], next_ms)


class Try(NamedTuple):
    """One try of a delivery, and the token of its lease."""

    delivery: Delivery
    token: str


async def acquire(redis: Redis, endpoint: str, delivery_id: str, lease_s: float) -> Try | None:
    """Acquires the lease of a try; None if the delivery is not due, held or gone, or its endpoint has no place left."""
    names = webhook_keys_of(redis)
    token = uuid4().hex
    key_list = [names.due(endpoint), names.trying(endpoint), names.delivery(delivery_id)]
    fields = await _ACQUIRE(redis, key_list, [delivery_id, token, round(lease_s * 1000), PLACES])
    delivery = Delivery.decode(delivery_id, dict(zip(fields[::2], fields[1::2], strict=True)))
    return Try(delivery, token) if delivery else None


class TryResult(NamedTuple):
    """The result of a try; see `webhook_settle.lua`."""

    state: DeliveryState
    status: int = 0
    error: str = ""
    delay_s: float = 0
    is_counted: bool = True


async def settle(redis: Redis, delivery: Delivery, token: str, result: TryResult) -> bool:
    """Notes the result of a try.

    Args:
        token: of the lease; empty to end a delivery whoever holds it.

    Returns:
        False if the lease was lost.
    """
    names = webhook_keys_of(redis)
    endpoint, state = delivery.endpoint, result.state
    kept = state if state is not DeliveryState.WAITING else DeliveryState.FAILED
    key_list = [names.endpoints, names.open(endpoint), names.due(endpoint)]
    key_list += [names.trying(endpoint), names.delivery(delivery.delivery_id), names.ended(kept)]
    removed = await _SETTLE(redis, key_list, [
        delivery.delivery_id, endpoint, token, state.value, round(result.delay_s * 1000), KEPT_S[kept] * 1000,
        KEPT_MAX[kept], result.status, result.error[:ERROR_MAX_CHARS], int(result.is_counted),
    ])  # fmt: skip
    if removed:
        await redis.delete(*(names.delivery(delivery_id.decode()) for delivery_id in removed))
    return removed is not None


async def end_overflow(redis: Redis, open_max: int = OPEN_MAX) -> int:
    """Fails the oldest deliveries of the endpoint with most while more than `open_max` are open; returns how many."""
    names = webhook_keys_of(redis)
    ended = 0
    while (counts := await count_open(redis)) and (excess := sum(counts.values()) - open_max) > 0:
        endpoint = max(counts, key=lambda name: counts[name])
        oldest = await redis.zrange(names.open(endpoint), 0, min(excess, OVERFLOW_BATCH) - 1)
        deliveries = await _read(redis, [delivery_id.decode() for delivery_id in oldest])
        result = TryResult(DeliveryState.FAILED, error="overflow", is_counted=False)
        settled = [await settle(redis, delivery, "", result) for delivery in deliveries]
        if not any(settled):
            break
        ended += sum(settled)
    return ended


async def count_open(redis: Redis) -> dict[str, int]:
    """Returns the number of open deliveries by endpoint."""
    names = webhook_keys_of(redis)
    counts = await redis.hgetall(names.endpoints)  # type: ignore[misc]
    return {name.decode(): int(count) for name, count in counts.items()}


async def mark_gone(redis: Redis, endpoint: str, url: str) -> None:
    """Notes that the endpoint answered 410 under this URL."""
    names = webhook_keys_of(redis)
    await redis.hset(names.gone, endpoint, url)  # type: ignore[misc]


async def is_gone(redis: Redis, endpoint: str, url: str) -> bool:
    """Returns whether the endpoint answered 410 under this URL."""
    names = webhook_keys_of(redis)
    stored: bytes | None = await redis.hget(names.gone, endpoint)  # type: ignore[misc]
    return stored == url.encode()


async def forget_gone(redis: Redis, url_by_endpoint: Mapping[str, str]) -> None:
    """Removes the notes about endpoints that have another URL now, or are no longer configured."""
    names = webhook_keys_of(redis)
    noted = await redis.hgetall(names.gone)  # type: ignore[misc]
    old = [name for name, url in noted.items() if url_by_endpoint.get(name.decode()) != url.decode()]
    if old:
        await redis.hdel(names.gone, *old)  # type: ignore[misc]


async def resend(redis: Redis, delivery_id: str) -> Delivery:
    """Makes a delivery due now, whatever its state; returns it as it was.

    Raises:
        DeliveryNotFound: there is none, or it is no longer kept.
    """
    names = webhook_keys_of(redis)
    delivery = await read(redis, delivery_id)
    endpoint = delivery.endpoint
    key_list = [names.endpoints, names.gone, names.open(endpoint), names.due(endpoint)]
    key_list += [names.trying(endpoint), names.delivery(delivery_id)]
    key_list += [names.ended(DeliveryState.DELIVERED), names.ended(DeliveryState.FAILED)]
    if not await _RESEND(redis, [*key_list, names.bell], [delivery_id, endpoint]):
        raise DeliveryNotFound(delivery_id)
    return delivery


async def read(redis: Redis, delivery_id: str) -> Delivery:
    """Reads a delivery.

    Raises:
        DeliveryNotFound: there is none, or it is no longer kept.
    """
    found = await _read(redis, [delivery_id])
    if not found:
        raise DeliveryNotFound(delivery_id)
    return found[0]


class DeliveryPage(NamedTuple):
    """Deliveries, newest first, and the cursor after which the next page continues."""

    deliveries: list[Delivery]
    next: str | None


async def list_deliveries(
    redis: Redis, limit: int, *, state: DeliveryState | None = None, endpoint: str = "", before: str | None = None
) -> DeliveryPage:
    """Lists deliveries, newest first: open ones by their creation, ended ones by their end.

    Args:
        before: the cursor, `<ms>:<delivery id>`.
    """
    before_ms, _, before_id = (before or "").partition(":")
    count = EXAMINED_MAX + SAME_MS + 1  # the one more tells whether more follow
    async with redis.pipeline(transaction=False) as pipe:
        for key in await _lists(redis, state, endpoint):
            pipe.zrevrangebyscore(key, before_ms or "+inf", "-inf", start=0, num=count, withscores=True)
        found = [(int(score), member.decode()) for reply in await pipe.execute() for member, score in reply]
    found.sort(reverse=True)
    if before_ms:
        found = [one for one in found if one < (int(before_ms), before_id)]
    at_ms = {delivery_id: ms for ms, delivery_id in found[:EXAMINED_MAX]}
    examined = list(at_ms)
    kept = [one for one in await _read(redis, examined) if not endpoint or one.endpoint == endpoint]
    last = kept[limit - 1].delivery_id if len(kept) > limit else examined[-1] if len(found) > EXAMINED_MAX else None
    return DeliveryPage(kept[:limit], None if last is None else f"{at_ms[last]}:{last}")


async def _lists(redis: Redis, state: DeliveryState | None, endpoint: str) -> list[str]:
    """Returns the keys of the sets that may have such deliveries."""
    names = webhook_keys_of(redis)
    states = [state] if state else list(DeliveryState)
    lists = [names.ended(one) for one in states if one is not DeliveryState.WAITING]
    if DeliveryState.WAITING in states:
        lists += [names.open(name) for name in ([endpoint] if endpoint else await count_open(redis))]
    return lists


async def _read(redis: Redis, delivery_ids: Sequence[str]) -> list[Delivery]:
    names = webhook_keys_of(redis)
    async with redis.pipeline(transaction=False) as pipe:
        for delivery_id in delivery_ids:
            pipe.hgetall(names.delivery(delivery_id))
        replies = await pipe.execute() if delivery_ids else []
    found = (Delivery.decode(*one) for one in zip(delivery_ids, replies, strict=True))
    return [delivery for delivery in found if delivery is not None]


class WebhookCounts(NamedTuple):
    """The state of all webhooks.

    Attributes:
        undistributed: entries of the outbox that no worker has taken yet.
        open: open deliveries by endpoint.
        oldest_ms: how long the oldest open delivery has been waiting.
        failed: the failed deliveries that are kept.
        gone: endpoints that answered 410.
    """

    undistributed: int
    open: dict[str, int]
    oldest_ms: int
    failed: int
    gone: list[str]


async def count(redis: Redis) -> WebhookCounts:
    """Counts deliveries."""
    names = webhook_keys_of(redis)
    open_by_endpoint = await count_open(redis)
    partitions = partitioning_of(redis).partitions
    now = await read_time_ms(redis)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.zcard(names.ended(DeliveryState.FAILED))
        pipe.hkeys(names.gone)
        for partition in partitions:
            pipe.xlen(partition.outbox)
        for endpoint in open_by_endpoint:
            pipe.zrange(names.open(endpoint), 0, 0, withscores=True)
        failed, gone, *replies = await pipe.execute()
    undistributed, firsts = sum(replies[: len(partitions)]), replies[len(partitions) :]
    oldest = [int(score) for first in firsts for _, score in first]
    oldest_ms = max(0, now - min(oldest)) if oldest else 0
    return WebhookCounts(undistributed, open_by_endpoint, oldest_ms, failed, [name.decode() for name in gone])
