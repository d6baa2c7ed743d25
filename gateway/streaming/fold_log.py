"""Folds the log as it is now, before a stream or an answer begins."""

from contextlib import aclosing
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson

from stagebus.gateway.streaming.fold import END, Fold, FoldSource
from stagebus.gateway.streaming.folded_view import Voided
from stagebus.gateway.streaming.hub import Hub
from stagebus.gateway.streaming.model_pieces import is_model_stage, pieces_of
from stagebus.shared.domain.cursor import START, EventId, parse_id
from stagebus.shared.domain.events import StageCompleted, StageRestarted, ToolCompletionChunk
from stagebus.shared.domain.tenants import RunOwner

F = TypeVar("F", bound=Fold)
F_co = TypeVar("F_co", bound=Fold, covariant=True)

_CHUNK: Final = ToolCompletionChunk.event.encode()
_RESTARTED: Final = StageRestarted.event.encode()
_COMPLETED: Final = StageCompleted.event.encode()


class FoldedLog(NamedTuple, Generic[F_co]):
    """A fold and its position in the log.

    Attributes:
        message_count: the number of messages up to the position.
        rest: the messages of the event at the position that come after the message that was looked for.
        is_found: the log has the message that was looked for.
        is_ended: the fold has the run's terminal event.
        is_cut: the stream ends here although the run continues.
    """

    fold: F_co
    position: EventId
    message_count: int
    rest: list[bytes]
    is_found: bool
    is_ended: bool
    is_cut: bool = False


async def fold_log(
    hub: Hub, source: FoldSource[F], owner: RunOwner, until: int | None = None, part: int = 1
) -> FoldedLog[F]:
    """Folds the log up to its end, or up to the event that gives a message.

    Args:
        until: the number of that message, from 0 on; -1 for the place before the first one.
        part: count the messages of this part: a part ends with `END`, and the next one begins after it.

    Raises:
        RunNotFound: the owner has no such run.
        StorageUnavailable: Redis is down.
    """
    fold, count, parts = source.new(), 0, 1
    position, is_ended = START, False
    if until == -1 and part == 1:
        return FoldedLog(fold, START, 0, [], is_found=True, is_ended=False)
    async with aclosing(hub.pages(source.run.run_id, owner)) as pages:
        async for page in pages:
            for event in page.events:
                folded = fold.add(event.id, event.event, event.data)
                is_cut, messages = END in folded, [message for message in folded if message != END]
                count += len(messages)
                if until is not None and parts == part and count > until >= 0:
                    rest = messages[len(messages) - (count - until - 1) :] if count > until + 1 else []
                    return FoldedLog(
                        fold, event.event_id, count, rest, is_found=True, is_ended=event.is_terminal, is_cut=is_cut
                    )
                if is_cut and until is not None:
                    parts, count = parts + 1, 0
                    if parts == part and until == -1:
                        return FoldedLog(fold, event.event_id, 0, [], is_found=True, is_ended=False)
            position, is_ended = page.position, page.is_ended
    return FoldedLog(fold, position, count, [], is_found=False, is_ended=is_ended)


async def find_voided(hub: Hub, run_id: str, owner: RunOwner) -> list[Voided]:
    """Returns the parts of the log that are void now, for a client that cannot take back what it was sent.

    That is what a restart made void, and a complete stage's deltas if its result has another text, for example without a
    call that stood in it.

    Raises:
        RunNotFound: the owner has no such run.
        StorageUnavailable: Redis is down.
    """
    voided: list[Voided] = []
    said = _Said()
    async with aclosing(hub.pages(run_id, owner)) as pages:
        async for page in pages:
            for stage_id, entries in page.slices:
                if not is_model_stage(stage_id):
                    continue
                for event_id, (_, name, _, data) in entries:
                    sequence = parse_id(event_id.decode()).sequence
                    if name == _CHUNK:
                        said.add(orjson.loads(data).get("tool_results"), sequence)
                    elif name == _RESTARTED:
                        voided.append(Voided(stage_id, orjson.loads(data)["discard_from"], sequence))
                        said = _Said()
                    elif name == _COMPLETED:
                        result = orjson.loads(data).get("result") or {}
                        if said.texts and "".join(said.texts) != (result.get("text") or ""):
                            voided.append(Voided(stage_id, said.first, said.last))
                        said = _Said()
    return voided


class _Said:
    """The text of a stage's deltas, and the first and last event that has some."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.first = self.last = 0

    def add(self, chunk: Any, sequence: int) -> None:
        """Adds the text of a chunk."""
        texts = [piece.text for piece in pieces_of(chunk) if not piece.is_reasoning]
        if texts:
            self.first = self.first or sequence
            self.last = sequence
            self.texts += texts
