"""Puts entries into the outbox, as `announce.lua` does."""

import json

from redis.asyncio import Redis

from stagebus.shared.domain import ids
from stagebus.shared.storage import keys


async def put_entry(redis: Redis, *, run_id: str = "", webhook_url: str = "", type_: str = "run.ended") -> str:
    """Puts an entry of tenant `t` and returns its run's id."""
    run_id = run_id or ids.new_run_id()
    data = {"run_id": run_id, "status": "succeeded", "at": 1772366400123}
    fields = {
        "message": f"{run_id}_5_2_{type_}", "type": type_, "tenant": "t", "webhook_url": webhook_url,
        "data": json.dumps(data),
    }  # fmt: skip
    await redis.xadd(keys.outbox(), fields)  # type: ignore[arg-type]
    await redis.rpush(keys.outbox_bell(), "1")  # type: ignore[misc]
    return run_id
