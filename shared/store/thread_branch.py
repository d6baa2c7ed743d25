"""A branch of a thread: the turns from the root to one of them, and their messages in pages from the newest back."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from stagebus.shared.domain.threads import Thread, ThreadTurn
from stagebus.shared.log.transcript import public_json
from stagebus.shared.storage import keys
from stagebus.shared.storage.redis_client import Redis

# The messages of one page have as many bytes at most, except that a page has at least one turn.
PAGE_MAX_BYTES: Final = 2 * 2**20


_NO_MESSAGES: Final = b"[]"


class TurnMessages(NamedTuple):
    """A turn with its request's messages and those of its result, as clients get them.

    They are JSON: a page may have tens of thousands.
    """

    turn: ThreadTurn
    messages: bytes
    result: bytes


class BranchPage(NamedTuple):
    """Turns of a branch, the oldest first.

    Attributes:
        head_run_id: the branch's last turn; empty before the thread's first one.
        before: the run before which the previous page ends; None if this page begins at the root.
    """

    head_run_id: str
    turns: list[TurnMessages]
    before: str | None


def path_to(thread: Thread, run_id: str) -> list[ThreadTurn]:
    """Returns the turns from the root to a run, which are its branch; none if the thread has no such turn."""
    by_run = {turn.run_id: turn for turn in thread.turns}
    path: list[ThreadTurn] = []
    while (turn := by_run.pop(run_id, None)) is not None:
        path.append(turn)
        run_id = turn.parent_run_id
    return path[::-1]


def heads_of(thread: Thread) -> list[str]:
    """Returns the last turn of each branch, the newest branch last: the turns that no other one follows."""
    parents = {turn.parent_run_id for turn in thread.turns}
    return [turn.run_id for turn in thread.turns if turn.run_id not in parents]


async def read_branch(
    redis: Redis, thread: Thread, head_run_id: str, limit: int, before: str | None = None
) -> BranchPage:
    """Reads the newest turns of a branch with their messages.

    Args:
        head_run_id: the branch's last turn.
        limit: the most turns.
        before: a run of the branch; only turns before it are read.
    """
    path = path_to(thread, head_run_id)
    if before is not None:
        run_ids = [turn.run_id for turn in path]
        path = path[: run_ids.index(before)] if before in run_ids else []
    page: list[ThreadTurn] = []
    size = 0
    for turn in reversed(path[-limit:]):
        size += turn.size
        if page and size > PAGE_MAX_BYTES:
            break
        page.append(turn)
    page.reverse()
    is_whole = len(page) == len(path)
    return BranchPage(head_run_id, await _read_messages(redis, thread, page), None if is_whole else page[0].run_id)


async def _read_messages(redis: Redis, thread: Thread, turns: Sequence[ThreadTurn]) -> list[TurnMessages]:
    if not turns:
        return []
    thread_key, run_ids = keys.thread(thread.identity), [turn.run_id for turn in turns]
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hmget(keys.thread_in(thread_key), run_ids)
        pipe.hmget(keys.thread_out(thread_key), run_ids)
        messages_in, messages_out = await pipe.execute()
    stored = zip(turns, messages_in, messages_out, strict=True)
    return [
        TurnMessages(turn, own or _NO_MESSAGES, public_json(result or _NO_MESSAGES)) for turn, own, result in stored
    ]
