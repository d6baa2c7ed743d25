"""Conversations of protocols whose clients send the whole history with each request, as threads of Stagebus.

    user, msg_01J9… (ours), user          the answer of run 01J9… is the turn before; the last message is new
    user, msg_01J9… (ours)    edited ──▶  user, user: the turn before is gone from the history, so a branch begins

The messages that Stagebus gave have ids with their runs. The newest of them tells which turn the client answers; all that
follows it is new. A client that edits an earlier message or asks again sends a history that ends there, and so branches.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from stagebus.gateway.api.schemas.thread_fields import check_new_messages
from stagebus.shared.domain import run_id_pattern
from stagebus.shared.domain.threads import ROOT, OnActive, is_thread_id
from stagebus.shared.errors import BodyTooLarge

Json = dict[str, Any]

_OWN_MESSAGE: Final = re.compile(rf"msg_({run_id_pattern.PATTERN})(_\d+)?")


class ChatMessage(NamedTuple):
    """A message of a conversation in the format of `POST /runs`, and the id that the client knows it by."""

    message_id: Any
    message: Json


def thread_id_of(chat_id: str) -> str:
    """Returns the id of the thread that a chat stands for: its own id, if a thread can have it."""
    return chat_id if is_thread_id(chat_id) else hashlib.sha256(chat_id.encode(errors="replace")).hexdigest()


def thread_fields(chat_id: str, conversation: Sequence[ChatMessage]) -> list[Json]:
    """Returns the fields of `POST /runs` that continue a chat as a thread; the first ones that the thread takes are right.

    A new message of a chat takes the place of the answer that is being written, so it interrupts an active run.

    Returns:
        First those that continue the turn that the client answers, if there is one. Then those that begin a branch with the
        whole conversation, for a thread that no longer has that turn. Neither if the messages do not fit a thread.
    """
    ways = []
    for at, known in reversed(list(enumerate(conversation))):
        if own := _OWN_MESSAGE.fullmatch(str(known.message_id)):
            ways.append((own[1], [one.message for one in conversation[at + 1 :]]))
            break
    ways.append((ROOT, [one.message for one in conversation]))
    return [
        {
            "thread_id": thread_id_of(chat_id),
            "parent_run_id": parent,
            "messages": messages,
            "on_active": OnActive.INTERRUPT.value,
        }
        for parent, messages in ways
        if messages and _fit(messages, is_at_root=parent == ROOT)
    ]


def _fit(messages: Sequence[Json], *, is_at_root: bool) -> bool:
    try:
        return not any(check_new_messages(messages, is_at_root=is_at_root))
    except BodyTooLarge:
        return False
