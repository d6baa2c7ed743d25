"""Composes the messages that a run of a thread begins with: the turns on its path, then its own. Sans-IO.

    system    the newest system text on the path; never cut
    …         each turn: its own messages, then its result
    …         the run's own messages; never cut

The path is fixed when the run becomes active and ended turns do not change, so every attempt gets the same messages.
Turns are left out as a whole, so a call is never without its result.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from stagebus.shared.domain import model_items
from stagebus.shared.domain.events import HistoryComposed
from stagebus.shared.domain.threads import ThreadPath, ThreadTurn
from stagebus.shared.domain.token_estimate import estimate_prompt_tokens
from stagebus.shared.errors import HistoryTooLong
from stagebus.shared.log.transcript import IS_ERROR, LOST, ORIGIN, PARTIAL
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin

Message = dict[str, Any]

OLDEST_TURNS: Final = "oldest_turns"
_SYSTEM_ROLES: Final = ("system", "developer")
# Fields of stored messages that no provider knows.
_OWN_FIELDS: Final = frozenset({ORIGIN, PARTIAL, IS_ERROR})
_LOST_NOTE: Final[Message] = {"role": "assistant", "content": LOST}
# The status of a turn whose run has disappeared.
_LOST_STATUS: Final = "lost"


class HistoryLimits(NamedTuple):
    """The size that the messages may have.

    Attributes:
        bytes_max: of their JSON.
        tokens_max: estimated; None if the model's context is not known.
    """

    bytes_max: int
    tokens_max: int | None = None


class ComposedHistory(NamedTuple):
    """The messages of a run of a thread, and the event that says what they consist of."""

    messages: list[Message]
    event: HistoryComposed


class _Size(NamedTuple):
    bytes: int
    tokens: int


def compose_history(
    path: ThreadPath, limits: HistoryLimits, *, parent: str | None, truncate: str | None
) -> ComposedHistory:
    """Returns the messages with which the run begins.

    Args:
        path: the turns from the root to the run's parent. Turns that are deleted or cannot be read are left out.
        parent: the run that this one continues.
        truncate: OLDEST_TURNS leaves turns out, the oldest first, until the messages fit.

    Raises:
        HistoryTooLong: the messages do not fit, even without those that may be left out.
    """
    readable = [turn for turn in path.turns if not turn.is_deleted and turn.messages_in]
    cut_turns = path.cut_turns + len(path.turns) - len(readable)
    spoken = [messages for turn in readable for messages in (turn.messages_in, turn.messages_out)]
    system = _newest_system([*spoken, path.messages_in])
    turns = [_without_system(_turn_messages(turn)) for turn in readable]
    own = _without_system(path.messages_in)
    fixed = [*system, *own]
    sizes = [_size(messages) for messages in turns]
    total = _sum([_size(fixed), *sizes])
    while not _fits(total, limits):
        if truncate != OLDEST_TURNS or not turns:
            raise HistoryTooLong(
                total.bytes, total.tokens, can_truncate=truncate is None and _fits(_size(fixed), limits)
            )
        total = _Size(total.bytes - sizes[0].bytes, total.tokens - sizes[0].tokens)
        del turns[0], sizes[0]
        cut_turns += 1
    history = [message for messages in turns for message in messages]
    event = HistoryComposed(
        parent=parent,
        turns=len(turns),
        messages=len(history),
        bytes=sum(size.bytes for size in sizes),
        cut_turns=cut_turns,
    )
    return ComposedHistory([*system, *map(_as_request_message, history), *own], event)


def called_ids(messages: Iterable[Message]) -> set[str]:
    """Returns the ids of the calls in messages."""
    return {call["id"] for message in messages for call in message.get("tool_calls") or ()}


def _turn_messages(turn: ThreadTurn) -> list[Message]:
    lost = [_LOST_NOTE] if turn.status == _LOST_STATUS else []
    return [*turn.messages_in, *turn.messages_out, *lost]


def _newest_system(conversation: Sequence[Sequence[Message]]) -> list[Message]:
    """Returns the last system messages: those of a run, or of one that joined it."""
    found = ([m for m in messages if m["role"] in _SYSTEM_ROLES] for messages in reversed(conversation))
    return next(filter(None, found), [])


def _without_system(messages: Iterable[Message]) -> list[Message]:
    return [message for message in messages if message["role"] not in _SYSTEM_ROLES]


def _size(messages: Sequence[Message]) -> _Size:
    return _Size(
        sum(len(orjson.dumps(m)) for m in messages), estimate_prompt_tokens(map(_without_own_fields, messages))
    )


def _sum(sizes: Iterable[_Size]) -> _Size:
    return _Size(*map(sum, zip(*sizes, strict=True)))


def _fits(size: _Size, limits: HistoryLimits) -> bool:
    return size.bytes <= limits.bytes_max and (limits.tokens_max is None or size.tokens <= limits.tokens_max)


def _without_own_fields(message: Message) -> Message:
    return {name: value for name, value in message.items() if name not in _OWN_FIELDS}


def _as_request_message(message: Message) -> Message:
    """Returns a stored message as the stages send messages: its origin is what goes back to its model alone."""
    sent = _without_own_fields(message)
    origin = message.get(ORIGIN)
    if message["role"] == "assistant" and (origin or message.get("tool_calls")):
        sent[ORIGIN_KEY] = _origin(origin or {})
    return sent


def _origin(stored: Mapping[str, Any]) -> MessageOrigin:
    items = None
    if stored.get("items"):
        try:
            items = model_items.decode(orjson.dumps(stored["items"]))
        except ValueError:
            items = None  # every model answers without them, too
    return MessageOrigin(
        stored.get("provider"), stored.get("reasoning") or "", stored.get("reasoning_details") or (), items
    )
