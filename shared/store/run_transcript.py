"""Reads the messages that a run of a thread came to. Whoever ends the run calls this: its worker, a gateway or the sweep."""

from collections.abc import Sequence
from typing import Final

import orjson

from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.runs import RUN_STAGE
from stagebus.shared.log import log_reader
from stagebus.shared.log.transcript import Message, Transcript
from stagebus.shared.storage.redis_client import REDIS_AWAY, Redis, is_passing

_COMPLETED: Final = StageCompleted.event.encode()
# The events of a page take a few milliseconds; other requests run between two pages.
_PAGE_EVENTS: Final = 500


async def read_turn_messages(redis: Redis, run_id: str, stage_ids: Sequence[str]) -> list[Message]:
    """Reads the messages of a run as far as its log has come.

    Of a complete model stage, only the last event is read. Stages that are lost or damaged leave a note: a run has to
    end anyway.

    Args:
        stage_ids: the stages that the run has begun, from its claim.
    """
    transcript = Transcript()
    if RUN_STAGE not in stage_ids:
        transcript.lose(RUN_STAGE)
    unread = set(await _add_completions(redis, run_id, stage_ids, transcript))
    for stage_id in stage_ids:
        if stage_id in unread:
            await _add_stage(redis, run_id, stage_id, transcript)
    return transcript.messages(await log_reader.read_model_items(redis, run_id))


def encode_messages(messages: Sequence[Message]) -> bytes:
    """Returns the messages as the thread holds them."""
    return orjson.dumps(messages)


async def _add_completions(
    redis: Redis, run_id: str, stage_ids: Sequence[str], transcript: Transcript
) -> Sequence[str]:
    """Adds the last events of complete stages; returns the ids of the other stages, of which all events count."""
    worked = [stage_id for stage_id in stage_ids if stage_id != RUN_STAGE]
    if not worked:
        return stage_ids
    try:
        ends = await log_reader.read_stage_ends(redis, run_id, worked)
    except REDIS_AWAY as exc:
        if is_passing(exc):
            raise
        return stage_ids  # a key of another type
    complete = [last for _, last in ends if last.event == _COMPLETED]
    for last in complete:
        transcript.add(last)
    known = {last.stage_id for last in complete}
    return [stage_id for stage_id in stage_ids if stage_id not in known]


async def _add_stage(redis: Redis, run_id: str, stage_id: str, transcript: Transcript) -> None:
    """Adds all events of a stage."""
    is_empty = True
    try:
        async for page in log_reader.stage_pages(redis, run_id, stage_id, _PAGE_EVENTS):
            is_empty = is_empty and not page
            for event in page:
                transcript.add(event)
    except REDIS_AWAY as exc:
        if is_passing(exc):
            raise
        is_empty = True
    if is_empty:
        transcript.lose(stage_id)
