"""Reads the result of a run of a thread, for the process that ends the run: its worker, a gateway or the sweep."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import orjson

from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.log import log_reader
from stagebus.shared.log.transcript import Message, Transcript
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing

_COMPLETED: Final = StageCompleted.event.encode()
# The events of a page take a few milliseconds; other requests run between two pages.
PAGE_EVENTS: Final = 500


class ReadTurn(NamedTuple):
    """The result of a run, as far as its log had come when it was read.

    Attributes:
        last_id: the end of the log after the last read; None if the record is damaged.
    """

    messages: list[Message]
    last_id: EventId | None

    def encode(self) -> bytes:
        """Returns the messages as the thread holds them."""
        return orjson.dumps(self.messages)


async def read_turn(redis: Redis, run_id: str, stage_ids: Sequence[str]) -> ReadTurn:
    """Reads the messages of a run as far as its log has come.

    One round trip if all stages are complete: of these, only the last events are read. Stages that are lost or damaged
    leave a note, since a run has to end anyway.

    Args:
        stage_ids: the stages that the run has begun, from its claim.
    """
    transcript = Transcript()
    outline = await log_reader.read_outline(redis, run_id, stage_ids, PAGE_EVENTS)
    last_id = outline.last_id
    for stage_id in dict.fromkeys([RUN_STAGE, *stage_ids]):
        last = outline.last_events.get(stage_id)
        if last is not None and last.event == _COMPLETED:
            transcript.add(last)
        elif stage_id == RUN_STAGE and 0 < len(outline.journal) < PAGE_EVENTS:
            for event in outline.journal:
                transcript.add(event)
        else:
            await _add_stage(redis, run_id, stage_id, transcript)
            (last_id,) = await log_reader.read_last_ids(redis, [run_id])
    if RUN_STAGE not in stage_ids:
        transcript.lose(RUN_STAGE)
    return ReadTurn(transcript.messages(outline.items), last_id)


async def _add_stage(redis: Redis, run_id: str, stage_id: str, transcript: Transcript) -> None:
    """Adds all events of a stage."""
    is_empty = True
    try:
        async for page in log_reader.stage_pages(redis, run_id, stage_id, PAGE_EVENTS):
            is_empty = is_empty and not page
            for event in page:
                transcript.add(event)
    except REDIS_AWAY as exc:
        if is_passing(exc):
            raise
        is_empty = True
    if is_empty:
        transcript.lose(stage_id)
