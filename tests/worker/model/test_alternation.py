"""Conversations of threads for models whose roles must alternate."""

from typing import Any

import pytest

from stagebus.worker.model.alternation import demands_alternation, with_alternating_roles

Item = dict[str, Any]
IMAGE = {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "found"}


def user(content: Any, **fields: Any) -> Item:
    return {"role": "user", "content": content, **fields}


def answer(content: str) -> Item:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("a"), answer("A"), user("b")], [user("a"), answer("A"), user("b")]),
        ([user("a"), user("b"), user("c")], [user("a\n\nb\n\nc")]),
        ([answer("A"), answer("B")], [answer("A\n\nB")]),
        ([user("a"), user([IMAGE])], [user([{"type": "text", "text": "a"}, IMAGE])]),
        ([user("a", name="Ann"), user("b", name="Bob")], [user("a", name="Ann"), user("b", name="Bob")]),
        ([user("a"), CALL, RESULT, user("b")], [user("a"), CALL, RESULT, answer("…"), user("b")]),
        ([user("a"), CALL, RESULT, answer("A")], [user("a"), CALL, RESULT, answer("A")]),
        ([{"role": "system", "content": "s"}, user("a")], [{"role": "system", "content": "s"}, user("a")]),
    ],
)
def test_messages_of_one_role_become_one(messages: list[Item], expected: list[Item]) -> None:
    assert with_alternating_roles({"model": "m", "messages": messages}) == {"model": "m", "messages": expected}


def test_responses_have_the_same_in_their_words() -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": "found"}
    part = {"type": "input_image", "image_url": "https://x.example/y.png"}

    assert with_alternating_roles({"input": [user("a"), user([part]), output, user("b")]}) == {
        "input": [user([{"type": "input_text", "text": "a"}, part]), output, answer("…"), user("b")]
    }


@pytest.mark.parametrize(
    "message",
    [
        "Conversation roles must alternate user/assistant/user/assistant/...",
        "After the optional system message, conversation roles must alternate user and assistant roles.",
        "deepseek-reasoner does not support successive user or assistant messages (messages[1] and messages[2])",
        "Unexpected role 'user' after role 'tool'",
        "After the (optional) system message(s), user or tool message(s) should alternate with assistant message(s).",
    ],
)
def test_refusals_are_recognised(message: str) -> None:
    assert demands_alternation(message)
    assert not demands_alternation("This model's maximum context length is 8192 tokens.")
