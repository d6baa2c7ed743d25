"""Counts of what happened in conversations of the chaos test, and the checks of one after its end."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.domain.threads import ROOT, Thread, ThreadTurn
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.log.transcript import public_messages, turn_messages
from stagebus.shared.storage import keys
from tests.support.strict_client import TERMINAL, Received
from tests.support.strict_thread_client import FollowedTurn, StrictThreadClient

Message = dict[str, Any]


@dataclass
class Post:
    """A message whose POST was accepted."""

    run_id: str
    text: str
    on_active: str
    parent_run_id: str
    is_deleting: bool = False


@dataclass
class ThreadLedger:
    """Counts of what happened in conversations."""

    threads: int = 0
    turns: int = 0
    events: int = 0
    connections: int = 0
    posts: Counter[str] = field(default_factory=Counter)  # accepted by policy, refused by code
    outcomes: Counter[str] = field(default_factory=Counter)  # of accepted posts
    kept: set[str] = field(default_factory=set)  # accepted runs that nobody deleted
    deleted: set[str] = field(default_factory=set)
    results: Counter[int] = field(default_factory=Counter)  # of client tools, and claims on them, by status
    left: list[str] = field(default_factory=list)  # of deleted threads
    violations: list[str] = field(default_factory=list)  # of a stream, or a wrong answer
    stranded: list[str] = field(default_factory=list)
    two_active: list[str] = field(default_factory=list)  # runs of one thread at once
    wrong_ends: list[str] = field(default_factory=list)  # accepted runs without exactly one end
    wrong_turns: list[str] = field(default_factory=list)  # lost, doubled, on a wrong place, unlike their log
    wrong_messages: list[str] = field(default_factory=list)  # said twice or never
    wrong_histories: list[str] = field(default_factory=list)  # unlike the path to the run
    open_calls: list[str] = field(default_factory=list)  # calls without a result in a history

    def add(self, other: "ThreadLedger") -> None:
        """Adds the counts of one more conversation."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            setattr(self, name, own | value if isinstance(value, set) else own + value)


class ThreadChecks:
    """The checks of one thread whose runs have all ended."""

    def __init__(self, thread: Thread, posts: Sequence[Post], late: StrictThreadClient, ledger: ThreadLedger) -> None:
        self._thread = thread
        self._posts = {post.run_id: post for post in posts}
        self._turns = {turn.run_id: turn for turn in thread.turns}
        self._followed = {turn.run_id: turn for turn in late.turns}
        self._ledger = ledger

    def check_all(self, journals: dict[str, list[StoredEvent]]) -> None:
        """Checks all of it. Args: `journals`: the run stage's log of each post's run."""
        self.check_turns()
        self.check_messages()
        self.check_ends(journals)
        self.check_histories()
        self.check_calls()

    def check_turns(self) -> None:
        wrong, order = self._ledger.wrong_turns, list(self._thread.turns)
        if list(self._followed) != [turn.run_id for turn in order] or len(self._turns) != len(order):
            wrong.append(f"{self._name}: the stream has {list(self._followed)}, the thread {list(self._turns)}")
        wrong += [f"{self._name}: {run_id} was not accepted" for run_id in self._known - set(self._posts)]
        for before, turn in zip([None, *order], order, strict=False):
            post = self._posts.get(turn.run_id)
            given = post.parent_run_id if post else ""
            expected = given.replace(ROOT, "") if given else before.run_id if before else ""
            if turn.parent_run_id != expected:
                wrong.append(f"{self._name}: {turn.run_id} follows {turn.parent_run_id}, not {expected}")
            if before is not None:
                self._check_sequence(self._followed[before.run_id], self._followed[turn.run_id])
            if turn.is_deleted:
                continue
            events = self._followed[turn.run_id].events
            if public_messages(turn.messages_out) != public_messages(turn_messages(map(_stored, events))):
                wrong.append(f"{self._name}: {turn.run_id} came to {turn.messages_out}, unlike its log")

    def _check_sequence(self, earlier: FollowedTurn, later: FollowedTurn) -> None:
        """Checks that no worker wrote to a run before the end of the one before; all clocks here are one."""
        ended = [event.data["at"] for event in earlier.events if event.event in TERMINAL]
        began = [e.data["at"] for e in later.events if e.event != "run_queued" and e.data.get("at") is not None]
        if ended and began and began[0] < ended[0]:
            self._ledger.two_active.append(f"{self._name}: {later.run_id} began before the end of {earlier.run_id}")

    @property
    def _name(self) -> str:
        return self._thread.identity.thread_id

    @property
    def _known(self) -> set[str]:
        return {*self._turns, *self._thread.merged, *(run.run_id for run in self._thread.waiting)}

    def check_messages(self) -> None:
        """Checks that each accepted message stands where it belongs, and nowhere else."""
        said = Counter(
            (turn.run_id, message["content"])
            for turn in self._thread.turns
            for message in (*turn.messages_in, *turn.messages_out)
            if message["role"] == "user"
        )
        for post in self._posts.values():
            places = [run_id for (run_id, text), count in said.items() if text == post.text for _ in range(count)]
            if places != (expected := list(self._places_of(post))):
                self._ledger.wrong_messages.append(f"{self._name}: {post} is in {places}, not in {expected}")

    def _places_of(self, post: Post) -> Iterator[str]:
        into = self._thread.merged.get(post.run_id, post.run_id)
        turn = self._turns.get(into)
        if turn is not None and not turn.is_deleted:
            yield into

    def check_ends(self, journals: dict[str, list[StoredEvent]]) -> None:
        """Checks that each run that exists has one end, its last event, and that only this explains a missing turn."""
        for post in self._posts.values():
            turn, merged = self._turns.get(post.run_id), post.run_id in self._thread.merged
            names = [event.event.decode() for event in journals[post.run_id]]
            ends = [name for name in names if name in TERMINAL]
            if post.is_deleting:
                self._ledger.outcomes["deleted"] += 1
                if names or (turn is not None and not turn.is_deleted):
                    self._ledger.wrong_ends.append(f"{self._name}: {post} was deleted, but is there: {names}")
                continue
            outcome = "joined another" if merged else "a turn" if turn else "cancelled before its turn"
            self._ledger.outcomes[outcome] += 1
            if len(ends) != 1 or names[-1] != ends[0]:
                self._ledger.wrong_ends.append(
                    f"{self._name}: {post} ended with {ends}, its last event is {names[-1:]}"
                )
            elif turn is None and ends != (["done"] if merged else ["cancel"]):
                self._ledger.wrong_turns.append(f"{self._name}: {post} ended with {ends} without a turn")
            if turn is not None and merged:
                self._ledger.wrong_turns.append(f"{self._name}: {post} has a turn, and joined another one")

    def check_histories(self) -> None:
        """Checks what each run said of its history, and what its model counted of it, against the path to it."""
        for turn in self._thread.turns:
            events = self._followed[turn.run_id].events
            path = list(self._path_to(turn))
            if turn.is_deleted or any(earlier.is_deleted for earlier in path):
                continue  # the deletion may have come before, within or after this run
            spoken = [m for earlier in path for m in (*earlier.messages_in, *earlier.messages_out)]
            composed = [event.data for event in events if event.event == "history_composed"]
            expected = (turn.parent_run_id or None, len(path), len(spoken), 0)
            if len(composed) > 1 or any(_told(data) != expected for data in composed):
                self._ledger.wrong_histories.append(f"{self._name}: {turn.run_id} composed {composed}, not {expected}")
            self._check_prompt(turn, spoken, events)

    def _check_prompt(self, turn: ThreadTurn, spoken: list[Message], events: list[Received]) -> None:
        added = [
            message
            for event in events
            if event.event == "message_added" and event.data["before"] == "extraction"
            for message in event.data["messages"]
        ]
        words = sum(len((m["content"] or "").split()) for m in (*spoken, *turn.messages_in, *added))
        for event in events:
            if event.event == "stage_completed" and event.data["stage_id"] == "extraction":
                counted = (event.data.get("usage") or {}).get("prompt_tokens")
                if counted != words:
                    self._ledger.wrong_histories.append(
                        f"{self._name}: {turn.run_id} sent {counted} words, not {words}"
                    )

    def _path_to(self, turn: ThreadTurn) -> Iterator[ThreadTurn]:
        while turn.parent_run_id:
            turn = self._turns[turn.parent_run_id]
            yield turn

    def check_calls(self) -> None:
        """Checks that the results of its calls follow each assistant's message, at once and once each."""
        for turn in self._thread.turns:
            if called := list(_open_calls((*turn.messages_in, *turn.messages_out))):
                self._ledger.open_calls.append(f"{self._name}: {turn.run_id} has {called}")


def _told(data: Message) -> tuple[Any, ...]:
    return data.get("parent"), data["turns"], data["messages"], data["cut_turns"]


def _open_calls(messages: Iterable[Message]) -> Iterator[str]:
    """Returns the calls without a result, and the results without a call."""
    called: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in called:
                yield message["tool_call_id"]
            called.discard(message["tool_call_id"])
            continue
        yield from called
        called = {call["id"] for call in message.get("tool_calls") or ()}
    yield from called


def _stored(event: Received) -> StoredEvent:
    return StoredEvent(event.id.encode(), event.data["stage_id"], event.event.encode(), orjson.dumps(event.data))


async def check_thread(
    redis: Redis, thread: Thread, posts: Sequence[Post], late: StrictThreadClient, ledger: ThreadLedger
) -> None:
    """Checks a thread whose runs have all ended, and counts it.

    Args:
        posts: those that were accepted.
        late: has received the whole thread.
    """
    journals = {post.run_id: await log_reader.read_stage(redis, post.run_id, RUN_STAGE) for post in posts}
    busy_key, key = keys.threads_busy(thread.identity.tag), keys.thread(thread.identity)
    is_busy = await redis.sismember(busy_key, key)  # type: ignore[misc]
    ThreadChecks(thread, posts, late, ledger).check_all(journals)
    if thread.active_run_id or thread.waiting or is_busy:
        left = (thread.active_run_id, [run.run_id for run in thread.waiting])
        ledger.wrong_turns.append(f"{thread.identity.thread_id}: {left} remain, and it counts as busy: {is_busy}")
    ledger.threads += 1
    ledger.turns += len(thread.turns)
