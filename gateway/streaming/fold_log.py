"""Folds the log as it is now, before a stream or an answer begins."""

from contextlib import aclosing
from typing import Final, Generic, NamedTuple, TypeVar

import orjson

from stagebus.gateway.streaming.fold import END, Fold, FoldSource
from stagebus.gateway.streaming.folded_view import Voided
from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import StageRestarted

F = TypeVar("F", bound=Fold)
F_co = TypeVar("F_co", bound=Fold, covariant=True)

_RESTARTED: Final = StageRestarted.event.encode()


class FoldedLog(NamedTuple, Generic[F_co]):
    """A fold and its position in the log.

    Attributes:
        message_count: the number of messages up to the position.
        rest: the messages of the event at the position that come after the message that was looked for.
        is_found: the log has the message that was looked for.
        is_ended: the fold has the run's terminal event.
    """

    fold: F_co
    position: EventId
    message_count: int
    rest: list[bytes]
    is_found: bool
    is_ended: bool


async def fold_log(hub: Hub, source: FoldSource[F], tenant: str, until: int | None = None) -> FoldedLog[F]:
    """Folds the log up to its end, or up to the event that gives a message.

    Args:
        until: the number of that message, from 0 on.

    Raises:
        RunNotFound: the tenant has no such run.
        StorageUnavailable: Redis is down.
    """
    fold, count = source.new(), 0
    position, is_ended = START, False
    async with aclosing(hub.pages(source.run.run_id, tenant)) as pages:
        async for page in pages:
            for event in page.events:
                messages = [message for message in fold.add(event.id, event.event, event.data) if message != END]
                count += len(messages)
                if until is not None and count > until:
                    rest = messages[len(messages) - (count - until - 1) :] if count > until + 1 else []
                    return FoldedLog(fold, event.event_id, count, rest, is_found=True, is_ended=event.is_terminal)
            position, is_ended = page.position, page.is_ended
    return FoldedLog(fold, position, count, [], is_found=False, is_ended=is_ended)


async def find_voided(hub: Hub, run_id: str, tenant: str) -> list[Voided]:
    """Returns the parts of the log that are void now, for a client that cannot take back what it was sent.

    Raises:
        RunNotFound: the tenant has no such run.
        StorageUnavailable: Redis is down.
    """
    voided: list[Voided] = []
    async with aclosing(hub.pages(run_id, tenant)) as pages:
        async for page in pages:
            for stage_id, entries in page.slices:
                for event_id, (_, name, _, data) in entries:
                    if name == _RESTARTED:
                        sequence = parse_id(event_id.decode()).sequence
                        voided.append(Voided(stage_id, orjson.loads(data)["discard_from"], sequence))
    return voided
