"""Reads the result of a run from its log: the whole answer, or what a stopped run had written of it."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import orjson

from stagebus.shared.domain.answer_finish import CANCELLED
from stagebus.shared.domain.events import ModelStageResult, StageRestarted, ToolCompletionChunk
from stagebus.shared.domain.runs import TOOLS, RunRecord, RunStatus
from stagebus.shared.log import log_reader
from stagebus.shared.log.log_page import StoredEvent
from stagebus.shared.model_text.chunk_text import partial_answer
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store.run_store import StoredStage


class StoredResult(NamedTuple):
    """The result of a run that has ended.

    Attributes:
        is_partial: the run was stopped, so the text may be incomplete.
        json: the value of the text, if the run asked for JSON and the answer is whole.
    """

    text: str
    finish_reason: str | None
    is_partial: bool = False
    json: Any = None


async def read_result(redis: Redis, run: RunRecord, stages: Sequence[StoredStage]) -> StoredResult | None:
    """Returns the result of a run that has ended; None if it has not, or no model stage of it has begun.

    A run that was cancelled or failed has a partial result: the text of its last model stage, so far. Its finish
    reason is the model's; if the model had given none, it is `cancelled` or the code of the run's error.
    """
    if not run.is_terminal:
        return None
    stage = next((stage for stage in reversed(stages) if not stage.stage_id.startswith(TOOLS)), None)
    if stage is None:
        return None
    is_partial = run.status is not RunStatus.SUCCEEDED
    if stage.completed is not None:
        result = ModelStageResult.model_validate(stage.completed.result)
        value = _parse_json(result.text) if run.request.get("response_format") and not is_partial else None
        return StoredResult(result.text, result.finish_reason, is_partial, value)
    text = partial_answer(_valid_chunks(await log_reader.read_stage(redis, run.run_id, stage.stage_id)))
    return StoredResult(text, (run.error or {}).get("code", CANCELLED), is_partial=True)


def _parse_json(text: str) -> Any:
    """Returns the value of a text; None if it is no JSON, as a refusal is."""
    # Not orjson, which refuses integers of more than 64 bits.
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _valid_chunks(events: Sequence[StoredEvent]) -> list[dict[str, Any]]:
    """Returns the chunks of a stage that no restart has voided."""
    chunks: list[tuple[int, dict[str, Any]]] = []
    for event in events:
        if event.event == ToolCompletionChunk.event.encode():
            chunks.append((event.event_id.sequence, orjson.loads(event.data)["tool_results"]))
        elif event.event == StageRestarted.event.encode():
            restarted = StageRestarted.model_validate_json(event.data)
            chunks = [(sequence, chunk) for sequence, chunk in chunks if sequence < restarted.discard_from]
    return [chunk for _, chunk in chunks]
