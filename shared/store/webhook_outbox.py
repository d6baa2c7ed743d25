"""Makes deliveries from the outbox: one for each endpoint that wants to be told."""

import logging
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.domain.webhook_messages import TEST_TYPE, OutboxEntry, delivery_id_of
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition, partitioning_of
from stagebus.shared.storage.redis_client import Redis, read_time_ms

logger = logging.getLogger(__name__)

BATCH: Final = 100

_FAN_OUT: Final = Script("webhook_fan_out")


def encode_body(message_type: str, at_ms: int, data: dict[str, Any]) -> str:
    """Returns the body of a message of something that happened at a time, Unix ms."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return orjson.dumps({"type": message_type, "timestamp": at, "data": data}).decode()


async def fan_out(redis: Redis, webhooks: WebhookConfig, partition: Partition = UNTAGGED) -> bool:
    """Makes the deliveries of a partition's oldest entries and removes these; returns whether there may be more.

    The endpoints are those of the present configuration. An entry that nobody wants, or that cannot be read, is removed.
    """
    found = await redis.xrange(partition.outbox, count=BATCH)
    if not found:
        return False
    key_list, args = (
        [partition.outbox, keys.WEBHOOK_ENDPOINTS],
        [orjson.dumps([entry_id.decode() for entry_id, _ in found])],
    )
    for number, (entry_id, fields) in enumerate(found, start=1):
        try:
            entry = OutboxEntry.decode(entry_id, fields)
            receivers = webhooks.receivers(entry.type, entry.tenant, entry.webhook_url)
            made = [_delivery(entry, endpoint) for endpoint in receivers]
        except (ValueError, KeyError):
            logger.exception("entry %s of the outbox cannot be read and is removed", entry_id.decode())
            continue
        for endpoint, delivery_id, content in made:
            key_list += _keys_of(endpoint, delivery_id)
            args += [number, delivery_id, endpoint, content]  # type: ignore[list-item]
    await _FAN_OUT(redis, key_list, args)
    return len(found) == BATCH


def _keys_of(endpoint: str, delivery_id: str) -> list[str]:
    return [keys.webhook_delivery(delivery_id), keys.webhook_open(endpoint), keys.webhook_due(endpoint)]


def _delivery(entry: OutboxEntry, endpoint: str) -> tuple[str, str, bytes]:
    """Returns the endpoint, the delivery's id and its fields."""
    data = {**entry.data, "tenant": entry.tenant}
    content = {
        "webhook_id": entry.webhook_id,
        "type": entry.type,
        "run_id": str(entry.data["run_id"]),
        "tenant": entry.tenant,
        "url": entry.webhook_url if " " in endpoint else "",
        "body": encode_body(entry.type, int(entry.data["at"]), data),
    }
    return endpoint, delivery_id_of(entry.message, endpoint), orjson.dumps(content)


async def add_test(redis: Redis, endpoint: str, message: str) -> str:
    """Makes a delivery of a test message to an endpoint; returns the delivery's id.

    Args:
        message: unique to the test.
    """
    now = await read_time_ms(redis)
    delivery_id = delivery_id_of(message, endpoint)
    content = {
        "webhook_id": f"msg_{message}", "type": TEST_TYPE, "run_id": "", "tenant": "", "url": "",
        "body": encode_body(TEST_TYPE, now, {"at": now}),
    }  # fmt: skip
    key_list = [UNTAGGED.outbox, keys.WEBHOOK_ENDPOINTS, *_keys_of(endpoint, delivery_id)]
    await _FAN_OUT(redis, key_list, [b"[]", 0, delivery_id, endpoint, orjson.dumps(content)])
    await redis.rpush(partitioning_of(redis).partitions[0].outbox_bell, "1")  # type: ignore[misc]
    return delivery_id
