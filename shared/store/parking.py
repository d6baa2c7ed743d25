"""The scripts of runs that wait for a person, as typed functions: park and decide.

As in `run_scripts`, both are safe to repeat.
"""

from typing import Final

from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import RunEnded
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.run_scripts import told_keys_of

# The message to the worker that holds the run, over its control channel.
DECIDED_MESSAGE: Final = b"decided"

_DECIDE = Script("decide")
_PARK = Script("park", uses=("announce",))


async def park(
    connection: ScriptConnection, run_id: str, *, token: str, attempt: int, due_ms: int, seen: bytes, tenant: str = ""
) -> bool:
    """Gives a run back that waits for decisions.

    Args:
        due_ms: when the first of them expires, Unix ms by Redis's clock.
        seen: the record's `decisions` as the worker last read them. If there are more, the run is due immediately.
        tenant: the owner, whose feed tells of the run; empty if that is not known.

    Returns:
        False if another worker holds the run.
    """
    key_list = [keys.QUEUE, keys.lease(run_id), keys.run(run_id), keys.WAKEUP, *told_keys_of(tenant)]
    args = [run_id, token, attempt, due_ms, seen, RunStatus.PARKED.value, keys.WAKEUPS_MAX]
    return bool(await _PARK(connection, key_list, args))


async def decide(connection: ScriptConnection, run_id: str, call_id: str, decision: str) -> str:
    """Stores the decision on a call. If no worker holds the run, it becomes due.

    Returns:
        The call's decision: the first one, which may be another caller's.

    Raises:
        RunEnded: the run ended without a decision, or is gone.
    """
    key_list = [keys.run(run_id), keys.control(run_id), keys.QUEUE, keys.WAKEUP]
    match await _DECIDE(connection, key_list, [run_id, call_id, decision, DECIDED_MESSAGE, keys.WAKEUPS_MAX]):
        case [b"decided", first]:
            return str(first.decode())
        case _:
            raise RunEnded(run_id)
