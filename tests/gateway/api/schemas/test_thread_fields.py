"""The fields of a run in a thread: ids of any text, and messages that end in no open call."""

from typing import Any

import pytest

from stagebus.gateway.api.schemas.create_run import thread_of
from stagebus.shared.domain.threads import THREAD_ID_MAX_CHARS, OnActive, ThreadIdentity, is_thread_id
from stagebus.shared.errors import BodyTooLarge
from tests.gateway.api.schemas.test_create_run import HELLO, parse, wrong_fields

RUN = "01J9ZK3V7Q8E5W2R4T6Y8V0P1A"
USER = {"role": "user", "content": "Hello"}


def call(*call_ids: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": "{}"}
    return {"role": "assistant", "tool_calls": [{"id": i, "type": "function", "function": function} for i in call_ids]}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "18 degrees"}


ODD_IDS = ["1", "a/b", "{CE}", "a:b c", "?x=1#y", "%2F", "Grüße 🙂", "...", "events", "x" * THREAD_ID_MAX_CHARS]


@pytest.mark.parametrize("thread_id", ODD_IDS)
def test_any_text_is_a_thread_id(thread_id: str) -> None:
    body = {**HELLO, "thread_id": thread_id, "on_active": "steer", "parent_run_id": RUN}
    place = thread_of(body, "acme", "ada", parse(**body).messages)

    assert place is not None
    assert place.identity == ThreadIdentity("acme", "ada", thread_id)
    assert (place.on_active, place.parent_run_id, place.messages) == (OnActive.STEER, RUN, [USER])


@pytest.mark.parametrize("thread_id", ["", ".", "..", "a\nb", "\x7f", "\x85", "x" * (THREAD_ID_MAX_CHARS + 1), 7])
def test_other_thread_ids_are_refused(thread_id: Any) -> None:
    assert wrong_fields({**HELLO, "thread_id": thread_id}) == ["thread_id"]
    assert not isinstance(thread_id, str) or not is_thread_id(thread_id)


@pytest.mark.parametrize(
    "fields", [{"parent_run_id": "root"}, {"on_active": "enqueue"}, {"truncate": "oldest_turns"}], ids=str
)
def test_fields_of_a_thread_need_its_id(fields: dict[str, str]) -> None:
    assert wrong_fields({**HELLO, **fields}) == [*fields]


@pytest.mark.parametrize(
    ("field", "value"), [("parent_run_id", "5204-1"), ("on_active", "wait"), ("truncate", "oldest"), ("truncate", True)]
)
def test_unknown_words_are_refused(field: str, value: Any) -> None:
    assert wrong_fields({**HELLO, "thread_id": "1", field: value}) == [field]


def test_a_run_without_a_thread_has_the_stored_form_of_older_versions() -> None:
    assert "truncate" not in parse(**HELLO).model_dump(mode="json")
    assert parse(**HELLO, thread_id="1", truncate="oldest_turns").truncate == "oldest_turns"


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [USER, call("a", "b"), result("b"), result("a"), USER],
        [USER, {"role": "assistant", "content": "Hi"}, USER],
    ],
)
def test_closed_sequences_are_accepted(messages: list[dict[str, Any]]) -> None:
    assert parse(messages=messages, thread_id="1").messages == messages


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([USER, call("a")], "messages.1.tool_calls.0"),
        ([USER, call("a", "b"), result("a"), USER], "messages.1.tool_calls.1"),
        ([USER, call("a"), USER, result("a")], "messages.1.tool_calls.0"),
        ([USER, call("a", "a"), result("a")], "messages.1.tool_calls.1"),
        ([USER, result("a")], "messages.1.tool_call_id"),
        ([USER, call("a"), result("a"), result("a")], "messages.3.tool_call_id"),
        ([{"role": "assistant", "content": "Hi"}, USER], "messages.0"),
    ],
)
def test_open_calls_stray_results_and_whole_conversations_are_refused(
    messages: list[dict[str, Any]], field: str
) -> None:
    assert wrong_fields({"messages": messages, "thread_id": "1"})[0] == field
    assert parse(messages=messages).messages == messages, "without a thread the client has the whole conversation"


def test_a_branch_at_the_root_may_begin_with_an_answer() -> None:
    messages = [{"role": "assistant", "content": "How can I help?"}, USER]

    assert parse(messages=messages, thread_id="1", parent_run_id="root").messages == messages


def test_messages_of_one_request_are_bounded_whatever_the_settings_allow() -> None:
    with pytest.raises(BodyTooLarge):
        parse(user_prompt="x" * 2**20, thread_id="1")
