"""The Lua scripts of conversations as typed functions: one script, one verb, one function. All are safe to repeat."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.domain.cursor import EventId, parse_id
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.threads import TURNS_MAX
from stagebus.shared.errors import Fenced, RunEnded
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection
from stagebus.shared.storage.partition_keys import partition_of_run, partitioning_of
from stagebus.shared.storage.run_scripts import AppendResult, LogEntry, TerminalState
from stagebus.shared.storage.thread_keys import RunThread, ThreadTimes, thread_args, thread_group

_DROP = Script("drop_thread", uses=("virtual_time", "thread"))
_FORGET = Script("forget_thread", uses=("virtual_time", "thread"))
_LIST_STEERING = Script("list_steering")
_MEND = Script("mend_thread", uses=("announce", "virtual_time", "thread", "close_gone"))
_PATH = Script("thread_path")
_STEER = Script("steer", uses=("announce", "virtual_time", "thread"))

# The turns that one script reads: a thousand would hold Redis for 25 ms.
PATH_STEP_TURNS: Final = 100


class StoredPath(NamedTuple):
    """The messages of a run and of the turns before it, as Redis holds them.

    Attributes:
        messages_in: the run's own messages, JSON; empty if the thread does not have them.
        left_out: how many turns were not read.
        turns: the parent first; each is the run id, the parent, the fields n, t, s, c, e, b and d, and its messages.
    """

    messages_in: bytes
    left_out: int
    turns: Sequence[Sequence[bytes]]


async def read_path(connection: ScriptConnection, thread_key: str, run_id: str, bytes_max: int) -> StoredPath:
    """Reads the messages on the path from a run's parent to the root of its thread, at most `bytes_max` of them."""
    key_list = [keys.thread_turns(thread_key), keys.thread_in(thread_key), keys.thread_out(thread_key)]
    own, left_out, turns = b"", 0, []
    at, read_bytes = b"", 0
    for _ in range(0, TURNS_MAX, PATH_STEP_TURNS):
        args: list[Any] = [run_id, bytes_max, PATH_STEP_TURNS, at, read_bytes]
        messages_in, newly_left_out, at, read_bytes, *found = await _PATH(connection, key_list, args)
        own = own or messages_in
        left_out += newly_left_out
        turns += found
        if not at:
            break
    return StoredPath(own, left_out, turns)


class SteeringRun(NamedTuple):
    """A waiting run whose messages may join the active run; they are JSON."""

    run_id: str
    messages: bytes


async def list_steering(connection: ScriptConnection, thread_key: str, run_id: str) -> list[SteeringRun]:
    """Returns the waiting runs whose messages may join the active run, in the order of their creation."""
    key_list = [keys.thread_turns(thread_key), keys.thread_in(thread_key), keys.thread_line(thread_key)]
    reply: list[bytes] = await _LIST_STEERING(connection, key_list, [run_id])
    return [SteeringRun(name.decode(), messages) for name, messages in zip(reply[::2], reply[1::2], strict=True)]


async def steer(
    connection: ScriptConnection,
    thread: RunThread,
    *,
    attempt: int,
    before: EventId,
    added: LogEntry,
    message: bytes,
    joining_id: str,
    end: TerminalState,
    done: bytes,
) -> AppendResult | None:
    """Appends the messages of a waiting run to the log of the active run, and ends the waiting run.

    Args:
        thread: of the active run.
        attempt: of the active run; all that it produced is in the log.
        before: the log's last id.
        added: the event `message_added`, of the journal.
        message: this event for the live channel, from `live_batch.encode`.
        joining_id: the waiting run.
        end, done: its terminal state, and the payload of its `done`.

    Returns:
        None if the run no longer waits to join this one: it has left, or became a turn of its own. `is_behind` if the
        log does not end with `before`; nothing was changed then.

    Raises:
        Fenced: another attempt owns the active run.
        RunEnded: the active run has ended or is gone.
    """
    run_id = thread.run_id
    part = partition_of_run(connection, run_id)
    key_list = [keys.run(run_id), keys.live(run_id), keys.stages(run_id), keys.stage_stream(run_id, RUN_STAGE)]
    key_list += [keys.run(joining_id), keys.live(joining_id), keys.stages(joining_id)]
    key_list += [keys.stage_stream(joining_id, RUN_STAGE), *part.told_keys(thread.tenant), *thread.keys(part)]
    args: list[Any] = [attempt, str(before), message, RUN_STAGE, added.event, added.data, run_id, joining_id]
    args += [orjson.dumps(end.fields()), done, orjson.dumps(thread.args())]
    match await _STEER(connection, key_list, args):
        case [b"ok", last_id, cancel]:
            return AppendResult(parse_id(last_id.decode()), cancel == b"1")
        case [b"behind", last_id]:
            return AppendResult(parse_id(last_id.decode()), is_behind=True)
        case [b"gone"]:
            return None
        case [b"fenced", _]:
            raise Fenced(run_id, attempt)
        case _:
            raise RunEnded(run_id)


class Mended(StrEnum):
    """The repair of a thread."""

    NONE = "none"
    CLOSED = "closed"  # the active run was gone, or had ended past its thread
    STARTED = "started"  # no run was active, but some waited
    GONE = "gone"  # the thread is gone


async def mend(
    connection: ScriptConnection,
    thread_key: str,
    tenant: str,
    times: ThreadTimes,
    *,
    active: str,
    out: bytes = b"",
    has_webhooks: bool = False,
) -> tuple[Mended, str]:
    """Repairs a thread that keeps its runs waiting, and extends the TTL of its keys.

    Args:
        active: the active run that the caller saw, or empty; only this one's turn is closed.
        out: the messages of its result, JSON; empty if its log is gone.
        has_webhooks: this process has webhooks configured, so a run that is gone is reported to them.

    Returns:
        The repair, and the run that is active now, or empty.
    """
    partition = partitioning_of(connection).of_tag(keys.tag_of(thread_key))
    key_list = [keys.run(active) if active else thread_key, *partition.told_keys(tenant)]
    key_list += thread_group(partition, thread_key, tenant)
    args = [active, out, orjson.dumps(thread_args(times)), int(has_webhooks)]
    done, now_active = await _MEND(connection, key_list, args)
    return Mended(done.decode()), now_active.decode()


async def drop(connection: ScriptConnection, thread_key: str, tenant: str, times: ThreadTimes) -> tuple[str, list[str]]:
    """Lets a thread take no more runs.

    Returns:
        The thread's life id and the runs that belong to it, or belonged to it before; an empty id if there is none.
    """
    args = [orjson.dumps(thread_args(times))]
    reply: list[bytes] = await _DROP(connection, _group(connection, thread_key, tenant), args)
    names = [name.decode() for name in reply]
    return (names[0], names[1:]) if names else ("", [])


async def forget(connection: ScriptConnection, thread_key: str, tenant: str, times: ThreadTimes, life_id: str) -> bool:
    """Deletes the keys of a thread that was dropped and whose runs are deleted; returns False if they are gone already."""
    args = [life_id, orjson.dumps(thread_args(times))]
    return bool(await _FORGET(connection, _group(connection, thread_key, tenant), args))


def _group(connection: ScriptConnection, thread_key: str, tenant: str) -> list[str]:
    partition = partitioning_of(connection).of_tag(keys.tag_of(thread_key))
    return thread_group(partition, thread_key, tenant)
