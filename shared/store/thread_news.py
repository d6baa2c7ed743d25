"""Reads of a thread what its event stream needs: who is active, who waits, and one turn at a time.

A run's end, the turn that follows it and its place among all turns are written by one script. So a reader that has a
run's last event finds the next turn, or sees that no run is active.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.thread_cursor import THREAD_START, ThreadCursor
from stagebus.shared.domain.thread_frames import WaitingInThread
from stagebus.shared.log.transcript import public_json
from stagebus.shared.storage import keys
from stagebus.shared.storage.pipelined import Command, ReadConnection, read_at_once
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store.thread_store import decode_policy

# Stands for the last event of a run that disappeared with its log. No log has this id: attempt 0 writes one event.
LOST_ID: Final = EventId(0, 2)
_NO_MESSAGES: Final = b"[]"


class ThreadVersion(NamedTuple):
    """Changes when a turn begins, when runs wait or leave, and when the thread is created again after its deletion."""

    life_id: str
    turn_count: int
    waiting_ids: tuple[str, ...]


class ThreadNews(NamedTuple):
    """A thread at one moment, for a reader that has the turns up to some place.

    Attributes:
        next_run_id: the turn after that place; empty if there is none.
        is_idle: no run is active and none waits.
    """

    version: ThreadVersion
    next_run_id: str
    is_idle: bool


class StoredTurn(NamedTuple):
    """A turn as it is stored.

    Attributes:
        status: empty while the run is active.
        end_id: the id of the run's last event; START while the run is active.
        messages: the new messages of its request, JSON.
        has_log: whether the run's log can be read.
    """

    run_id: str
    seq: int
    parent_run_id: str
    status: str
    end_id: EventId
    is_deleted: bool
    messages: bytes
    has_log: bool


class RunPlace(NamedTuple):
    """The place of a run in its thread.

    Attributes:
        parent_run_id: empty at the root; a waiting run has one only if its request named it.
        position: its place among the waiting runs, from 1 on; None if it does not wait.
        steers: the run that its messages may join, or have joined; empty for none.
    """

    parent_run_id: str = ""
    position: int | None = None
    steers: str = ""


NO_PLACE: Final = RunPlace()


class ThreadTip(NamedTuple):
    """The end of a thread at one moment: the last event of its newest turn, and whether more is to come soon."""

    cursor: ThreadCursor
    is_idle: bool


async def read_news(connection: ReadConnection, thread_key: str, after_seq: int) -> ThreadNews | None:
    """Reads the thread, and which turn is the first after a place; None if there is no such thread."""
    following = ("ZRANGE", keys.thread_order(thread_key), f"({after_seq}", "+inf", "BYSCORE", "LIMIT", 0, 1)
    record, line, run_ids = await read_at_once(connection, [*_ask_version(thread_key), following])
    version = _version(record, line)
    if version is None:
        return None
    return ThreadNews(version, run_ids[0].decode() if run_ids else "", is_idle=not record[2] and not line)


async def read_versions(redis: Redis, thread_keys: Sequence[str]) -> list[ThreadVersion | None]:
    """Reads the versions of several threads in one round trip; None for a thread that does not exist."""
    async with redis.pipeline(transaction=False) as pipe:
        for thread_key in thread_keys:
            for command in _ask_version(thread_key):
                pipe.execute_command(*command)
        replies = await pipe.execute()
    return [_version(record, line) for record, line in zip(replies[::2], replies[1::2], strict=True)]


def _ask_version(thread_key: str) -> list[Command]:
    return [
        ("HMGET", thread_key, "gen", "next_seq", "active", "deleting"),
        ("LRANGE", keys.thread_line(thread_key), 0, -1),
    ]


def _version(record: Sequence[bytes | None], line: Sequence[bytes]) -> ThreadVersion | None:
    life_id, turn_count, _, deleting = record
    if not life_id or deleting:
        return None
    return ThreadVersion(life_id.decode(), int(turn_count or 0), tuple(run_id.decode() for run_id in line))


async def read_turn(connection: ReadConnection, thread_key: str, run_id: str) -> StoredTurn | None:
    """Reads a turn with its request's messages; None if the thread has no such turn."""
    names = [f"{field}:{run_id}" for field in "npsed"]
    fields, messages, last_id = await read_at_once(
        connection,
        [
            ("HMGET", keys.thread_turns(thread_key), *names),
            ("HGET", keys.thread_in(thread_key), run_id),
            ("HGET", keys.run(run_id), "last_id"),
        ],
    )
    seq, parent, status, end_id, deleted = (field.decode() if field else "" for field in fields)
    if not seq:
        return None
    return StoredTurn(
        run_id=run_id,
        seq=int(seq),
        parent_run_id=parent,
        status=status,
        end_id=_end_id(status, end_id),
        is_deleted=bool(deleted),
        messages=_one_line(messages),
        has_log=bool(last_id),
    )


def _end_id(status: str, end_id: str) -> EventId:
    if not status:
        return START
    return parse_id(end_id) if end_id else LOST_ID


async def read_result(connection: ReadConnection, thread_key: str, run_id: str) -> bytes:
    """Returns the messages of an ended turn's result, JSON, as clients get them."""
    (messages,) = await read_at_once(connection, [("HGET", keys.thread_out(thread_key), run_id)])
    return public_json(messages) if messages else _NO_MESSAGES


def _one_line(messages: bytes | None) -> bytes:
    """Returns stored JSON that may become a line of a frame."""
    if not messages:
        return _NO_MESSAGES
    return orjson.dumps(orjson.loads(messages)) if b"\n" in messages or b"\r" in messages else messages


async def read_waiting(connection: ReadConnection, thread_key: str, run_ids: Sequence[str]) -> list[WaitingInThread]:
    """Reads how each of the waiting runs waits."""
    if not run_ids:
        return []
    names = [f"w:{run_id}" for run_id in run_ids]
    (fields,) = await read_at_once(connection, [("HMGET", keys.thread_turns(thread_key), *names)])
    return [
        _waiting(run_id, at, field) for at, (run_id, field) in enumerate(zip(run_ids, fields, strict=True), start=1)
    ]


async def read_place(redis: Redis, thread_key: str, run_id: str) -> RunPlace:
    """Reads where a run stands in its thread; `thread_key` is empty for a run without one."""
    if not thread_key:
        return NO_PLACE
    names = [f"p:{run_id}", f"w:{run_id}"]
    (parent, how), line = await read_at_once(
        redis,
        [("HMGET", keys.thread_turns(thread_key), *names), ("LRANGE", keys.thread_line(thread_key), 0, -1)],
    )
    waiting_ids = [waiting.decode() for waiting in line]
    position = waiting_ids.index(run_id) + 1 if run_id in waiting_ids else None
    _, _, steers = (how or b"").decode().partition(":")
    return RunPlace((parent or b"").decode(), position, steers)


def _waiting(run_id: str, position: int, field: Any) -> WaitingInThread:
    on_active, steers = decode_policy(field.decode() if field else "")
    return WaitingInThread(run_id=run_id, position=position, on_active=on_active, steers=steers or None)


async def read_tip(connection: ReadConnection, thread_key: str) -> ThreadTip | None:
    """Reads the end of the thread; None if there is no such thread."""
    newest = ("ZRANGE", keys.thread_order(thread_key), 0, 0, "REV")
    record, line, run_ids = await read_at_once(connection, [*_ask_version(thread_key), newest])
    if _version(record, line) is None:
        return None
    cursor = THREAD_START
    if run_ids:
        run_id = run_ids[0].decode()
        last_id, end_id = await read_at_once(
            connection,
            [("HGET", keys.run(run_id), "last_id"), ("HGET", keys.thread_turns(thread_key), f"e:{run_id}")],
        )
        known = last_id or end_id
        cursor = ThreadCursor(run_id, parse_id(known.decode()) if known else LOST_ID)
    return ThreadTip(cursor, is_idle=not record[2] and not line)
