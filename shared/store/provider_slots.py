"""The slots of a provider that limits how many ask it at once, and how often: scripts as typed functions.

All workers share them through Redis. A slot is a lease: who holds one and goes silent loses it.
"""

from collections.abc import Collection
from typing import Final

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis

_ACQUIRE: Final = Script("slot_acquire")
_RELEASE: Final = Script("slot_release")
_RENEW: Final = Script("slot_renew")
_TOKENS: Final = Script("tokens")


async def acquire(
    redis: Redis,
    provider: str,
    token: str,
    *,
    held_max: int | None,
    minute_max: int | None,
    waited_s: float,
    slot_s: float,
    seen_s: float,
) -> float | None:
    """Take a slot, or a place in the line.

    Args:
        waited_s: how long the token has waited already, which is its place in the line.
        slot_s: the slot's lease.
        seen_s: who waits must ask again within this.

    Returns:
        None with a slot; else seconds until asking again may help, endless where only another's leaving does.
    """
    times_ms = [round(seconds * 1000) for seconds in (waited_s, slot_s, seen_s)]
    match await _ACQUIRE(redis, keys.provider_slots(provider), [token, held_max or 0, minute_max or 0, *times_ms]):
        case [b"wait", wait_ms]:
            return wait_ms / 1000 if wait_ms >= 0 else float("inf")
        case _:
            return None


async def renew(redis: Redis, provider: str, tokens: Collection[str], slot_s: float) -> None:
    """Keep the slots of these tokens for another lease."""
    held, *_ = keys.provider_slots(provider)
    await _RENEW(redis, [held], [round(slot_s * 1000), *tokens])


async def release(redis: Redis, provider: str, token: str) -> None:
    """Give a slot back, or a place in the line; nothing happens where the token has neither."""
    held, line, seen, _ = keys.provider_slots(provider)
    await _RELEASE(redis, [held, line, seen, keys.provider_freed(provider)], [token])


async def take_tokens(redis: Redis, provider: str, tokens: int, per_minute: int) -> float:
    """Count tokens against a provider's minute; negative ones give back what was not used.

    Returns:
        Seconds until the tokens that were taken may be used.
    """
    return int(await _TOKENS(redis, [keys.provider_tokens(provider)], [tokens, per_minute])) / 1000
