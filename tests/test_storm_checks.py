"""The checks of the storm's conversations find what they are there for."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.domain.threads import Thread, ThreadIdentity, ThreadTurn
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.storage import keys
from tests.support.deleted_conversation import DeletedConversation
from tests.support.strict_client import Received, Violation
from tests.support.strict_thread_client import StrictThreadClient
from tests.support.thread_ledger import Post, ThreadChecks, ThreadLedger

IDENTITY = ThreadIdentity(DEFAULT_TENANT, "", "talk")
FIRST, SECOND, JOINED = (f"01J9ZK3V7Q8E5W2R4T6Y8V0P1{letter}" for letter in "ABC")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class Finished:
    """A thread of two turns, of which the first one took a message in, as the storm would find it."""

    def __init__(self) -> None:
        self.posts = [
            Post(FIRST, "one", "reject", ""),
            Post(JOINED, "two", "steer", ""),
            Post(SECOND, "three", "enqueue", ""),
        ]
        self.client = StrictThreadClient([], "talk")
        self.turns = [self.turn(1, FIRST, "one", "", "two"), self.turn(2, SECOND, "three", FIRST)]
        self.merged = {JOINED: FIRST}
        self.journals = {run_id: [stored("run_queued"), stored("done")] for run_id in (FIRST, SECOND, JOINED)}

    def turn(self, seq: int, run_id: str, text: str, parent: str, joined: str = "") -> ThreadTurn:
        history = {"parent": parent or None, "turns": seq - 1, "messages": 2 * (seq - 1), "cut_turns": 0}
        added = {"run_id": JOINED, "before": "synthesis", "messages": [user(joined)]}
        events: list[tuple[str, dict[str, Any]]] = [
            ("run_queued", {"at": 0}),
            ("history_composed", {"at": 10 * seq, **history}),
        ]
        events += [("message_added", added)] if joined else []
        events += [
            ("stage_completed", {"stage_id": "extraction", "result": {}, "usage": {"prompt_tokens": 2 * seq - 1}})
        ]
        events += [("done", {"at": 10 * seq + 5})]
        self.client.take(
            "", "turn", {"run_id": run_id, "seq": seq, "parent_run_id": parent or None, "messages": [user(text)]}
        )
        for number, (name, data) in enumerate(events, start=1):
            self.client.take(f"{run_id}.1-{number}", name, {"stage_id": "run", **data})
        out = [user(joined)] if joined else []
        return ThreadTurn(run_id, parent, seq, 0, "succeeded", messages_in=[user(text)], messages_out=out)

    def check(self) -> dict[str, list[str]]:
        ledger = ThreadLedger()
        thread = Thread(
            ThreadIdentity("t", "", "talk"), "1", 0, 0, "", {}, "", SECOND, 0, False, tuple(self.turns), (), self.merged
        )
        ThreadChecks(thread, self.posts, self.client, ledger).check_all(self.journals)
        return {name: value for name, value in vars(ledger).items() if isinstance(value, list) and value}


def stored(name: str) -> StoredEvent:
    return StoredEvent(b"1-1", "run", name.encode(), b"{}")


def change_turn(number: int, **fields: Any) -> Callable[[Finished], None]:
    return lambda found: found.turns.__setitem__(number, replace(found.turns[number], **fields))


def change_event(number: int, name: str, **data: Any) -> Callable[[Finished], None]:
    def change(found: Finished) -> None:
        events = found.client.turns[number].events
        (place,) = [i for i, event in enumerate(events) if event.event == name]
        events[place] = events[place]._replace(data={**events[place].data, **data})

    return change


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}


@pytest.mark.parametrize(
    ("column", "spoil"),
    [
        ("two_active", change_event(1, "history_composed", at=1)),
        ("wrong_ends", lambda found: found.journals[SECOND].append(stored("cancel"))),
        ("wrong_ends", lambda found: found.journals[JOINED].pop()),
        ("wrong_turns", lambda found: found.turns.pop()),
        ("wrong_turns", lambda found: found.turns.append(found.turns[0])),
        ("wrong_turns", change_turn(1, parent_run_id="")),
        ("wrong_turns", change_turn(1, messages_out=[user("never said")])),
        ("wrong_turns", lambda found: found.posts.pop()),
        ("wrong_messages", change_turn(1, messages_in=[user("three"), user("two")])),
        ("wrong_messages", change_turn(0, messages_out=[])),
        ("wrong_messages", change_turn(1, messages_in=[])),
        ("wrong_histories", change_event(1, "history_composed", messages=1)),
        ("wrong_histories", change_event(1, "history_composed", cut_turns=1)),
        ("wrong_histories", change_event(1, "stage_completed", usage={"prompt_tokens": 1})),
        ("open_calls", change_turn(1, messages_out=[CALL])),
        ("open_calls", change_turn(0, messages_in=[user("one"), {"role": "tool", "tool_call_id": "c", "content": ""}])),
    ],
)
def test_check_finds_its_fault(column: str, spoil: Callable[[Finished], object]) -> None:
    found = Finished()
    assert found.check() == {}
    spoil(found)

    assert column in found.check()


@pytest.mark.parametrize("key", [keys.thread_turns(keys.thread(IDENTITY)), keys.run(FIRST)])
async def test_remains_of_a_deleted_thread_are_found(redis: Redis, key: str) -> None:
    talk = DeletedConversation([], redis, IDENTITY.thread_id, Random(1), int, bool, 1)
    talk.posts.append(Post(FIRST, "one", "reject", ""))
    await talk.check_gone()
    assert talk.ledger.left == []
    await redis.hset(key, "created_at", "1")  # type: ignore[misc]
    await redis.expire(key, 60)
    await talk.check_gone()

    assert key in talk.ledger.left[0]


def follow(*frames: tuple[str, str, dict[str, Any]]) -> StrictThreadClient:
    client = StrictThreadClient([], "talk")
    for frame in frames:
        client.take(*frame)
    return client


def begun(run_id: str, seq: int) -> tuple[str, str, dict[str, Any]]:
    return "", "turn", {"run_id": run_id, "seq": seq, "parent_run_id": None, "messages": []}


def event(run_id: str, sequence: int, name: str = "done") -> tuple[str, str, dict[str, Any]]:
    return f"{run_id}.1-{sequence}", name, {"stage_id": "run"}


@pytest.mark.parametrize(
    "frames",
    [
        [event(FIRST, 1)],
        [begun(FIRST, 2)],
        [begun(FIRST, 1), begun(FIRST, 1)],
        [begun(FIRST, 1), begun(SECOND, 2)],
        [begun(FIRST, 1), event(FIRST, 2)],
        [begun(FIRST, 1), event(FIRST, 1, "run_queued"), event(FIRST, 1)],
        [begun(FIRST, 1), event(FIRST, 1), event(FIRST, 2)],
        [begun(FIRST, 1), event(SECOND, 1)],
        [begun(FIRST, 1), event(FIRST, 1), begun(SECOND, 3)],
        [begun(FIRST, 1), event(FIRST, 1), begun(FIRST, 2)],
        [begun(FIRST, 1), ("", "gap", {"run_id": FIRST})],
    ],
)
def test_strict_client_of_a_thread_refuses(frames: list[tuple[str, str, dict[str, Any]]]) -> None:
    with pytest.raises(Violation):
        follow(*frames)


def test_strict_client_of_a_thread_accepts_turns_and_deletions() -> None:
    gone = {"run_id": SECOND, "seq": 2, "parent_run_id": None}
    client = follow(begun(FIRST, 1), event(FIRST, 1), begun(SECOND, 2), ("", "turn_deleted", gone), begun(JOINED, 3))

    assert [turn.is_deleted for turn in client.turns] == [False, True, False]
    assert client.turns[0].events == [Received(1, "1-1", "done", {"stage_id": "run"})]
