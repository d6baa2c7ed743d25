"""The fields of `POST /runs` that place a run in a thread, and the rules for the messages of such a run.

    {"thread_id": "chat-7", "user_prompt": "And tomorrow?", "on_active": "enqueue"}

The request has the new messages only: Stagebus keeps those of the thread's earlier runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

import orjson
from pydantic import Field

from stagebus.gateway.api.schemas.chat_messages import WireModel
from stagebus.shared.domain import run_id_pattern
from stagebus.shared.domain.threads import ROOT, THREAD_ID_MAX_CHARS, OnActive, is_thread_id
from stagebus.shared.errors import BodyTooLarge

MESSAGES_MAX_BYTES: Final = 2**20
PARENT_PATTERN: Final = rf"^({run_id_pattern.PATTERN}|{ROOT})$"

Fault = tuple[str, str]


class ThreadFields(WireModel):
    """The thread of a run, and its place there."""

    thread_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=THREAD_ID_MAX_CHARS,
        description="the conversation that the run continues, by any text that the client chooses, without control "
        "characters; it is created on first use, and `messages` has only what is new",
    )
    parent_run_id: str | None = Field(
        default=None,
        pattern=PARENT_PATTERN,
        description="the run of the thread that this one follows, to edit or to ask again: a new branch begins there; "
        f"`{ROOT}` begins a branch with nothing before it; by default the run follows the thread's current branch",
    )
    on_active: Literal["reject", "enqueue", "interrupt", "steer"] | None = Field(
        default=None,
        description="what happens while another run of the thread is active: `reject` (the default) answers 409, `enqueue` "
        "waits for its end, `interrupt` cancels it, `steer` adds the messages to it before it asks the model again",
    )
    truncate: Literal["oldest_turns"] | None = Field(
        default=None,
        description="what to do if the thread's history is too long for the model: `oldest_turns` leaves out the oldest "
        "turns; by default the run ends with `history_too_long`",
    )

    @property
    def policy(self) -> OnActive:
        """Returns what happens while another run of the thread is active."""
        return OnActive(self.on_active or OnActive.REJECT)


def check_thread_fields(form: ThreadFields) -> Iterator[Fault]:
    """Yields what is wrong with the thread's id, and with fields that need it."""
    if form.thread_id is None:
        for name in ("parent_run_id", "on_active", "truncate"):
            if getattr(form, name) is not None:
                yield name, "only together with thread_id"
    elif not is_thread_id(form.thread_id):
        yield "thread_id", "must have no control characters, and must not be . or .."


def check_new_messages(messages: Sequence[dict[str, Any]], *, is_at_root: bool) -> Iterator[Fault]:
    """Yields what is wrong with the new messages of a thread: each call needs its result, and each result its call.

    A client that sends the whole conversation would double it, so the first message is not the model's, except at the
    root of a branch.

    Raises:
        BodyTooLarge: they are longer than the messages of one request may be.
    """
    if len(orjson.dumps(messages)) > MESSAGES_MAX_BYTES:
        raise BodyTooLarge(MESSAGES_MAX_BYTES)
    if messages[0]["role"] == "assistant" and not is_at_root:
        fault = "the first new message must not be the assistant's, since the thread has its answers already: send only what "
        yield "messages.0", fault + f"is new, or begin a branch with parent_run_id {ROOT!r}"
    open_calls: dict[str, str] = {}  # the place of each call without a result, by its id
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            if open_calls.pop(message["tool_call_id"], None) is None:
                yield f"messages.{at}.tool_call_id", "the messages before have no open call of this id"
            continue
        yield from _faults_of(open_calls)
        open_calls = {}
        for number, call in enumerate(message.get("tool_calls") or []):
            place = f"messages.{at}.tool_calls.{number}"
            if call["id"] in open_calls:
                yield place, "another call of the message has this id"
            open_calls[call["id"]] = place
    yield from _faults_of(open_calls)


def _faults_of(open_calls: dict[str, str]) -> Iterator[Fault]:
    for place in open_calls.values():
        yield place, "the call needs its result: a message of the role tool that follows, before any other message"
