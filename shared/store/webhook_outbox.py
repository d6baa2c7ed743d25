"""Makes deliveries from the outbox: one for each endpoint that wants to be told."""

import logging
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.domain.webhook_messages import TEST_TYPE, OutboxEntry, delivery_id_of
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.partition_keys import UNTAGGED, Partition
from stagebus.shared.storage.redis_client import Redis, read_time_ms
from stagebus.shared.storage.webhook_keys import WebhookKeys, webhook_keys_of

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
    entry_ids = [entry_id.decode() for entry_id, _ in found]
    names = webhook_keys_of(redis)
    # Entries of another partition are removed after their deliveries are made: a repetition leaves those that exist alone.
    is_one_step = names.partition == partition
    key_list, args = [names.partition.outbox, names.endpoints], [orjson.dumps(entry_ids if is_one_step else [])]
    for number, (entry_id, fields) in enumerate(found, start=1):
        try:
            entry = OutboxEntry.decode(fields)
            receivers = webhooks.receivers(entry.type, entry.tenant, entry.webhook_url)
            made = [_delivery(entry, endpoint) for endpoint in receivers]
        except (ValueError, KeyError, TypeError):
            logger.exception("entry %s of the outbox cannot be read and is removed", entry_id.decode())
            continue
        for endpoint, delivery_id, content in made:
            key_list += _keys_of(names, endpoint, delivery_id)
            args += [number if is_one_step else 0, delivery_id, endpoint, content]  # type: ignore[list-item]
    await _FAN_OUT(redis, key_list, args)
    if not is_one_step:
        await redis.xdel(partition.outbox, *entry_ids)
    return len(found) == BATCH


def _keys_of(names: WebhookKeys, endpoint: str, delivery_id: str) -> list[str]:
    return [names.delivery(delivery_id), names.open(endpoint), names.due(endpoint)]


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
    names = webhook_keys_of(redis)
    key_list = [names.partition.outbox, names.endpoints, *_keys_of(names, endpoint, delivery_id)]
    await _FAN_OUT(redis, key_list, [b"[]", 0, delivery_id, endpoint, orjson.dumps(content)])
    if not await redis.llen(names.bell):  # type: ignore[misc]
        await redis.rpush(names.bell, "1")  # type: ignore[misc]
    return delivery_id
