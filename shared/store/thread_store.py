"""Reads conversations: a whole one, and what a run of one has to know of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import orjson

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.threads import (
    Messages,
    OnActive,
    Thread,
    ThreadIdentity,
    ThreadPath,
    ThreadTurn,
    WaitingRun,
)
from stagebus.shared.storage import keys, thread_scripts
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.thread_keys import RunThread, ThreadEnd, ThreadTimes
from stagebus.shared.thread_errors import ThreadNotFound

# The fields of a turn after its id and its parent, as `thread_path.lua` returns them.
_FIELDS: Final = ("n", "t", "s", "c", "e", "b", "d")
_MERGED: Final = "merged"


async def read_thread(redis: Redis, identity: ThreadIdentity, *, with_messages: bool = False) -> Thread:
    """Reads a thread at one moment.

    Args:
        with_messages: also read the messages of all turns and waiting runs.

    Raises:
        ThreadNotFound: there is no such thread.
    """
    thread_key = keys.thread(identity)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(thread_key)
        pipe.hgetall(keys.thread_turns(thread_key))
        pipe.zrange(keys.thread_order(thread_key), 0, -1)
        pipe.lrange(keys.thread_line(thread_key), 0, -1)
        if with_messages:
            pipe.hgetall(keys.thread_in(thread_key))
            pipe.hgetall(keys.thread_out(thread_key))
        record, turns, order, line, *messages = await pipe.execute()
    if not record.get(b"gen"):
        raise ThreadNotFound(identity.thread_id)
    fields = {name.decode(): value.decode() for name, value in turns.items()}
    messages_in, messages_out = messages or ({}, {})
    return _thread(
        identity,
        {name.decode(): value.decode() for name, value in record.items()},
        turns=tuple(
            _turn(
                run_id,
                {name: fields.get(f"{name}:{run_id}", "") for name in ("p", *_FIELDS)},
                messages_in,
                messages_out,
            )
            for run_id in (member.decode() for member in order)
        ),
        waiting=tuple(_waiting(fields, [member.decode() for member in line], messages_in)),
        merged=dict(_merged(fields)),
    )


def _thread(
    identity: ThreadIdentity,
    record: Mapping[str, str],
    *,
    turns: tuple[ThreadTurn, ...],
    waiting: tuple[WaitingRun, ...],
    merged: dict[str, str],
) -> Thread:
    return Thread(
        identity=identity,
        life_id=record["gen"],
        created_at=int(record["created_at"]),
        updated_at=int(record["updated_at"]),
        title=record.get("title", ""),
        metadata=orjson.loads(record.get("metadata") or "{}"),
        active_run_id=record["active"],
        head_run_id=record["head"],
        size=int(record["bytes"]),
        is_deleting="deleting" in record,
        turns=turns,
        waiting=waiting,
        merged=merged,
    )


def _turn(
    run_id: str, fields: Mapping[str, str], messages_in: Mapping[bytes, bytes], messages_out: Mapping[bytes, bytes]
) -> ThreadTurn:
    return ThreadTurn(
        run_id=run_id,
        parent_run_id=fields["p"],
        seq=int(fields["n"] or 0),
        activated_at=int(fields["t"] or 0),
        status=fields["s"],
        code=fields["c"],
        last_id=fields["e"],
        size=int(fields["b"] or 0),
        is_deleted=bool(fields["d"]),
        messages_in=_messages(messages_in.get(run_id.encode(), b"")),
        messages_out=_messages(messages_out.get(run_id.encode(), b"")),
    )


def _messages(stored: bytes) -> Messages:
    return tuple(orjson.loads(stored)) if stored else ()


def _waiting(
    fields: Mapping[str, str], run_ids: Sequence[str], messages_in: Mapping[bytes, bytes]
) -> Iterator[WaitingRun]:
    for position, run_id in enumerate(run_ids, start=1):
        on_active, steers = decode_policy(fields.get(f"w:{run_id}", ""))
        messages = _messages(messages_in.get(run_id.encode(), b""))
        yield WaitingRun(run_id, position, on_active, steers, messages)


def decode_policy(stored: str) -> tuple[OnActive, str]:
    """Decodes the field `w:` of a waiting run: why it waits, and the run that its messages may join; empty for none."""
    word, _, steers = stored.partition(":")
    try:
        return OnActive(word), steers
    except ValueError:  # damaged; it gets its turn all the same
        return OnActive.ENQUEUE, steers


def _merged(fields: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        word, _, into = value.partition(":")
        if name.startswith("w:") and word == _MERGED:
            yield name.removeprefix("w:"), into


async def read_own_messages(redis: Redis, thread_key: str, run_id: str) -> Messages:
    """Returns the own messages of a run in a thread; none if they joined another run or were deleted."""
    return _messages(await redis.hget(keys.thread_in(thread_key), run_id) or b"")  # type: ignore[misc]


async def path_to(connection: ScriptConnection, thread_key: str, run_id: str, bytes_max: int) -> ThreadPath:
    """Reads the turns from the root to the run's parent, with their messages, and the run's own messages.

    Each attempt of a run gets the same: its path is fixed when it becomes active, and turns that ended do not change.

    Args:
        thread_key: from the run's record.
        bytes_max: turns at the root's end are left out if the messages have more.
    """
    stored = await thread_scripts.read_path(connection, thread_key, run_id, bytes_max)
    turns = []
    for turn in reversed(stored.turns):
        turn_id, parent, *values = (value.decode() for value in turn[:9])
        fields = dict(zip(_FIELDS, values, strict=True)) | {"p": parent}
        name = turn[0]
        turns.append(_turn(turn_id, fields, {name: turn[9]}, {name: turn[10]}))
    return ThreadPath(tuple(turns), _messages(stored.messages_in), stored.left_out)


def times_of(settings: Settings) -> ThreadTimes:
    """Returns how long a thread's keys live."""
    return ThreadTimes(settings.thread_ttl_s, settings.lists_ttl_s)


def thread_of(run: RunRecord, settings: Settings) -> RunThread | None:
    """Returns the thread of a run; None if it is in none."""
    if not run.thread_key:
        return None
    return RunThread(run.run_id, run.thread_key, run.tenant, times_of(settings))


def end_of(run: RunRecord, settings: Settings, code: str = "", out: bytes = b"[]") -> ThreadEnd | None:
    """Returns the end of a run's turn; None for a run without a thread.

    Args:
        code: of the run's error, or empty.
        out: the messages that the run resulted in, JSON.
    """
    thread = thread_of(run, settings)
    return None if thread is None else ThreadEnd(thread, code, out)
