"""The scripts of runs that wait for a person: given back parked, and decided upon.

As in `run_scripts`: one script, one verb, one function, and each may simply be called again.
"""

from typing import Final

from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import RunEnded
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script
from stagebus.shared.storage.redis_client import Redis

# What the worker that holds the run hears over its control channel.
DECIDED_MESSAGE: Final = b"decided"

_DECIDE = Script("decide")
_PARK = Script("park")


async def park(redis: Redis, run_id: str, *, token: str, attempt: int, due_ms: int, seen: bytes) -> bool:
    """Give a run back that waits for decisions; False where another holds it by now.

    Args:
        due_ms: when the first of them expires, Unix ms by Redis's clock.
        seen: the record's `decisions` as they were read last; where there are more, it is due at once.
    """
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id), keys.WAKEUP]
    args = [run_id, token, attempt, due_ms, seen, RunStatus.PARKED.value, keys.WAKEUPS_MAX]
    return bool(await _PARK(redis, key_list, args))


async def decide(redis: Redis, run_id: str, call_id: str, decision: str) -> str:
    """Store what was decided on a call; the run goes on with it, at once where no worker holds it.

    Returns:
        The decision that stands: the first one, which may be another.

    Raises:
        RunEnded: it has ended without one, or is gone.
    """
    key_list = [keys.run(run_id), keys.control(run_id), keys.QUEUE, keys.WAKEUP]
    match await _DECIDE(redis, key_list, [run_id, call_id, decision, DECIDED_MESSAGE, keys.WAKEUPS_MAX]):
        case [b"stands", standing]:
            return str(standing.decode())
        case _:
            raise RunEnded(run_id)
