"""The scripts of runs that wait for somebody outside, as typed functions: park, decide, deliver and lease_call.

As in `run_scripts`, all are safe to repeat.
"""

from typing import Any, Final, NamedTuple

from stagebus.shared.call_errors import CallClaimed, CallHasResult
from stagebus.shared.domain import call_results
from stagebus.shared.domain.call_results import CallResult
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import RunEnded
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import partition_of_run

# The message to the worker that holds the run, over its control channel: a decision or a result was stored.
DECIDED_MESSAGE: Final = b"decided"

_DECIDE = Script("decide", uses=("number_change",))
_DELIVER = Script("deliver", uses=("number_change",))
_LEASE_CALL = Script("lease_call", uses=("number_change",))
_PARK = Script("park", uses=("announce",))


class Seen(NamedTuple):
    """The decisions and results of a run that its worker has read.

    Attributes:
        news: the number of the last one.
        decisions_bytes: the length of the record's decisions.
    """

    news: int = 0
    decisions_bytes: int = 0


async def park(
    connection: ScriptConnection, run_id: str, *, token: str, attempt: int, due_ms: int, seen: Seen, tenant: str = ""
) -> bool:
    """Gives a run back that waits for decisions or results.

    Args:
        due_ms: when the first of its calls expires, Unix ms by Redis's clock.
        seen: what the worker last read. If there is more, the run is due immediately.
        tenant: the owner, whose feed tells of the run; empty if that is not known.

    Returns:
        False if another worker holds the run.
    """
    part = partition_of_run(connection, run_id)
    key_list = [part.queue, part.lease(run_id), keys.run(run_id), part.wakeup, *part.told_keys(tenant)]
    args = [run_id, token, attempt, due_ms, *seen, RunStatus.PARKED.value, keys.WAKEUPS_MAX]
    return bool(await _PARK(connection, key_list, args))


async def decide(connection: ScriptConnection, run_id: str, call_id: str, decision: str) -> str:
    """Stores the decision on a call. If no worker holds the run, it becomes due.

    Returns:
        The call's decision: the first one, which may be another caller's.

    Raises:
        RunEnded: the run ended without a decision, or is gone.
    """
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), keys.control(run_id), part.queue, part.wakeup]
    match await _DECIDE(connection, key_list, [run_id, call_id, decision, DECIDED_MESSAGE, keys.WAKEUPS_MAX]):
        case [b"decided", first]:
            return str(first.decode())
        case _:
            raise RunEnded(run_id)


async def deliver(connection: ScriptConnection, run_id: str, ref: str, call_id: str, result: CallResult) -> CallResult:
    """Stores the result of a call. If no worker holds the run, it becomes due.

    Args:
        ref: the id of the event that completed the model's answer with the call.

    Returns:
        The call's result: the first one, which may be another caller's.

    Raises:
        RunEnded: the run ended without a result, or is gone.
    """
    args = [run_id, call_results.result_field(ref, call_id), call_results.encode(result)]
    match await _DELIVER(connection, _call_keys(connection, run_id), [*args, DECIDED_MESSAGE, keys.WAKEUPS_MAX]):
        case [b"delivered", first]:
            return call_results.decode(first)
        case _:
            raise RunEnded(run_id)


async def lease_call(
    connection: ScriptConnection, run_id: str, ref: str, call_id: str, *, holder: str, is_once: bool
) -> int:
    """Lets one client run a call for `CALL_LEASE_S`, or renews its lease; returns when it ends, in Unix ms.

    Args:
        ref: as in `deliver`.
        is_once: no other client may run the call, even after the lease has ended.

    Raises:
        CallClaimed: another client runs the call.
        CallHasResult: the call has its result.
        RunEnded: the run has ended or is gone.
    """
    args: list[Any] = [run_id, call_results.result_field(ref, call_id), call_results.lease_field(ref, call_id), holder]
    args += [round(call_results.CALL_LEASE_S * 1000), int(is_once), DECIDED_MESSAGE, keys.WAKEUPS_MAX]
    match await _LEASE_CALL(connection, _call_keys(connection, run_id), args):
        case [b"leased", until_ms]:
            return int(until_ms)
        case [b"held", until_ms]:
            raise CallClaimed(call_id, int(until_ms))
        case [b"answered"]:
            raise CallHasResult(call_id)
        case _:
            raise RunEnded(run_id)


def _call_keys(connection: ScriptConnection, run_id: str) -> list[str]:
    part = partition_of_run(connection, run_id)
    return [keys.run(run_id), keys.results(run_id), keys.control(run_id), part.queue, part.wakeup]
