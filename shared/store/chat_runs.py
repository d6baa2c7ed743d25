"""Chats of clients that name a conversation, not a run: a chat stands for its newest run, per tenant and user."""

import hashlib

from stagebus.shared.config.settings import Settings
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis

_POINT_CHAT = Script("point_chat")


async def point_chat(redis: Redis, settings: Settings, tenant: str, chat_id: str, run_id: str, user: str = "") -> None:
    """Lets a chat stand for a run, unless it stands for a newer one already."""
    life_s = round(settings.live_ttl_s + settings.retention_s)
    await _POINT_CHAT(redis, [_key(tenant, chat_id, user)], [run_id, life_s])


async def find_run(redis: Redis, tenant: str, chat_id: str, user: str = "") -> str | None:
    """Returns the id of the chat's newest run; None if the tenant's user has no such chat."""
    run_id = await redis.get(_key(tenant, chat_id, user))
    return run_id.decode() if run_id else None


def _key(tenant: str, chat_id: str, user: str) -> str:
    # Clients choose the id, so it may be long or contain a colon.
    return keys.chat(tenant, hashlib.sha256(chat_id.encode(errors="replace")).hexdigest(), user)
