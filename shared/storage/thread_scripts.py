"""The Lua scripts of conversations as typed functions: one script, one verb, one function. All are safe to repeat."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from stagebus.shared.domain.threads import TURNS_MAX
from stagebus.shared.storage import keys
from stagebus.shared.storage.lua_script import Script, ScriptConnection

_PATH = Script("thread_path")


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
    reply: list[Any] = await _PATH(connection, key_list, [run_id, bytes_max, TURNS_MAX])
    messages_in, left_out, *turns = reply
    return StoredPath(messages_in, left_out, turns)
