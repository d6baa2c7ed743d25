"""The slots of a provider with limits on concurrency, requests and tokens per minute: scripts as typed functions.

All workers share them through Redis. A slot is a lease: a worker that stops renewing loses it.
"""

from collections.abc import Collection
from typing import Final

from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection

_ACQUIRE: Final = Script("slot_acquire")
_RELEASE: Final = Script("slot_release")
_RENEW: Final = Script("slot_renew")
_TOKENS: Final = Script("tokens")


async def acquire(
    connection: ScriptConnection,
    provider: str,
    token: str,
    *,
    held_max: int | None,
    minute_max: int | None,
    waited_s: float,
    slot_s: float,
    seen_s: float,
) -> float | None:
    """Acquires a slot, or keeps a place among the requests that wait for one.

    Args:
        waited_s: how long the token has waited already, which decides its place.
        slot_s: the slot's lease.
        seen_s: a waiting token must ask again within this time.

    Returns:
        None with a slot, else the seconds until asking again may help; infinite if only a release helps.
    """
    times_ms = [round(seconds * 1000) for seconds in (waited_s, slot_s, seen_s)]
    args = [token, held_max or 0, minute_max or 0, *times_ms]
    match await _ACQUIRE(connection, keys.provider_slots(provider), args):
        case [b"wait", wait_ms]:
            return wait_ms / 1000 if wait_ms >= 0 else float("inf")
        case _:
            return None


async def renew(connection: ScriptConnection, provider: str, tokens: Collection[str], slot_s: float) -> None:
    """Renews the slots of these tokens."""
    held, *_ = keys.provider_slots(provider)
    await _RENEW(connection, [held], [round(slot_s * 1000), *tokens])


async def release(connection: ScriptConnection, provider: str, token: str) -> None:
    """Releases a token's slot or its place; does nothing if it has neither."""
    held, waiting, seen, _ = keys.provider_slots(provider)
    await _RELEASE(connection, [held, waiting, seen, keys.provider_freed(provider)], [token])


async def take_tokens(connection: ScriptConnection, provider: str, tokens: int, per_minute: int) -> float:
    """Counts LLM tokens against a provider's minute; a negative number gives unused ones back.

    Returns:
        Seconds until the tokens may be used.
    """
    return int(await _TOKENS(connection, [keys.provider_tokens(provider)], [tokens, per_minute])) / 1000
