"""The messages with which a run of a thread begins."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.threads import ThreadPath, ThreadTurn
from stagebus.shared.errors import HistoryTooLong
from stagebus.shared.log.transcript import LOST
from stagebus.worker.execution.history_composer import (
    OLDEST_TURNS,
    ComposedHistory,
    HistoryLimits,
    called_ids,
    compose_history,
)
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin

Message = dict[str, Any]
NO_LIMITS = HistoryLimits(10**9)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def answer(text: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": text, **fields}


def round_of(call_id: str, **fields: Any) -> list[Message]:
    call = {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": call_id, "content": "found", "is_error": True}
    return [{"role": "assistant", "content": None, "tool_calls": [call], **fields}, result]


def turn(messages_in: Sequence[Message], messages_out: Sequence[Message] = (), **fields: Any) -> ThreadTurn:
    return ThreadTurn("R", "", 1, 0, messages_in=messages_in, messages_out=messages_out, **fields)


def composed(
    *turns: ThreadTurn, own: Sequence[Message] = (user("now"),), limits: HistoryLimits = NO_LIMITS,
    truncate: str | None = None, cut_turns: int = 0,
) -> ComposedHistory:  # fmt: skip
    return compose_history(ThreadPath(turns, own, cut_turns), limits, parent="P", truncate=truncate)


def test_turns_come_before_the_runs_own_messages() -> None:
    history = composed(turn([user("a")], [answer("A")]), turn([user("b")], [answer("B")]))

    assert history.messages == [user("a"), answer("A"), user("b"), answer("B"), user("now")]
    assert history.event.model_dump(exclude={"bytes", "at"}) == {
        "stage_id": "run", "parent": "P", "turns": 2, "messages": 4, "cut_turns": 0,
    }  # fmt: skip
    assert history.event.bytes == sum(len(orjson.dumps(message)) for message in history.messages[:4])


def test_run_at_the_root_has_its_own_messages() -> None:
    assert composed(own=[system("be kind"), user("a")]).messages == [system("be kind"), user("a")]


def test_newest_system_text_counts_and_the_runs_own_takes_precedence() -> None:
    turns = turn([system("old"), user("a")]), turn([system("new"), system("and more"), user("b")]), turn([user("c")])

    assert composed(*turns).messages == [
        system("new"),
        system("and more"),
        user("a"),
        user("b"),
        user("c"),
        user("now"),
    ]
    own = composed(*turns, own=[user("now"), system("own")]).messages
    assert own == [system("own"), user("a"), user("b"), user("c"), user("now")]


def test_system_text_that_joined_a_turn_is_newer_than_the_turns_own() -> None:
    joined = turn([system("old"), user("a")], [system("joined"), user("b"), answer("B")])

    assert composed(joined).messages == [system("joined"), user("a"), user("b"), answer("B"), user("now")]


def test_no_field_of_ours_reaches_the_model() -> None:
    messages = composed(turn([user("a")], [*round_of("x"), answer("so f", partial=True)])).messages

    assert messages[2:4] == [{"role": "tool", "tool_call_id": "x", "content": "found"}, answer("so f")]


def test_calls_keep_where_they_come_from() -> None:
    """Their provider gets its reasoning and its items back; every other one gets plain ids."""
    items = {"api": "chat", "provider": "p", "model": "m", "items": [{"type": "reasoning"}]}
    origin = {"provider": "p", "reasoning": "hm", "items": items}
    messages = composed(turn([user("a")], [*round_of("x", origin=origin), answer("A", origin={"items": "?"})])).messages

    assert messages[1][ORIGIN_KEY] == MessageOrigin("p", "hm", (), ModelItems(**items))  # type: ignore[arg-type]
    assert messages[3] == answer("A", **{ORIGIN_KEY: MessageOrigin()}), "items that cannot be read are left out"
    assert composed(turn([user("a")], round_of("x"))).messages[1][ORIGIN_KEY] == MessageOrigin()
    assert all("origin" not in message for message in messages)
    assert called_ids(messages) == {"x"}


def test_deleted_and_unreadable_turns_are_left_out_and_counted() -> None:
    history = composed(
        turn([], is_deleted=True), turn([user("b")], [answer("B")]), turn([], [answer("C")]), cut_turns=2
    )

    assert history.messages == [user("b"), answer("B"), user("now")]
    assert (history.event.turns, history.event.cut_turns) == (1, 4)


def test_turn_whose_run_disappeared_has_a_note() -> None:
    assert composed(turn([user("a")], status="lost")).messages == [user("a"), answer(LOST), user("now")]


@pytest.mark.parametrize("limits", [HistoryLimits(200), HistoryLimits(10**6, tokens_max=50)], ids=["bytes", "tokens"])
def test_long_history_is_an_error_unless_the_run_asks_to_cut_it(limits: HistoryLimits) -> None:
    turns = [turn([user("a" * 100)], [answer("A" * 100)]), turn([user("b")], [answer("B")])]

    with pytest.raises(HistoryTooLong, match="oldest_turns"):
        composed(*turns, limits=limits)
    history = composed(
        system_turn := turn([system("s"), user("x" * 200)]), *turns, limits=limits, truncate=OLDEST_TURNS
    )
    assert history.messages == [system_turn.messages_in[0], user("b"), answer("B"), user("now")]
    assert (history.event.turns, history.event.cut_turns) == (1, 2)


def test_own_messages_and_system_text_are_never_cut() -> None:
    with pytest.raises(HistoryTooLong, match="own messages"):
        composed(turn([user("a")]), own=[user("x" * 500)], limits=HistoryLimits(200), truncate=OLDEST_TURNS)


def test_attachments_count_as_what_the_provider_counts() -> None:
    image = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}],
    }

    assert composed(turn([image]), limits=HistoryLimits(10**6, tokens_max=1500)).event.turns == 1


@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=12),
    st.integers(0, 2500),
    st.integers(0, 12),
)
def test_cut_history_is_closed_and_as_long_as_possible(shape: list[tuple[int, bool]], room: int, own_size: int) -> None:
    turns = [
        turn([user("q" * size)], [*(round_of(f"c{n}") if calls else ()), answer(f"a{n}")])
        for n, (size, calls) in enumerate(shape)
    ]
    own = [user("o" * own_size)]
    limits = HistoryLimits(room + len(orjson.dumps(own[0])))

    history = composed(*turns, own=own, limits=limits, truncate=OLDEST_TURNS)

    kept = turns[len(turns) - history.event.turns :]
    whole = composed(*kept, own=own).messages
    assert history.messages == whole, "whole turns are left out, from the root on"
    assert history.event.bytes <= room
    if len(kept) < len(turns):
        longer = composed(*turns[len(turns) - len(kept) - 1 :], own=own)
        assert longer.event.bytes > room
