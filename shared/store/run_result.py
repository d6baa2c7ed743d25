"""Reads the result of a run from its log: the whole answer, or what a stopped run had written of it."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from stagebus.shared.domain.answer_finish import CANCELLED
from stagebus.shared.domain.runs import TOOLS, RunRecord, RunStatus
from stagebus.shared.domain.stage_results import ModelStageResult
from stagebus.shared.log import log_reader
from stagebus.shared.log.stage_text import StageText
from stagebus.shared.runtime.exact_json import parse_json
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.store.run_store import StoredStage

# The events of a page take a few milliseconds.
_PAGE_EVENTS: Final = 500


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
    text = await _read_text(redis, run.run_id, stage.stage_id)
    return StoredResult(text, (run.error or {}).get("code", CANCELLED), is_partial=True)


def _parse_json(text: str) -> Any:
    """Returns the value of a text; None if it is no JSON, as a refusal is."""
    with suppress(ValueError):
        return parse_json(text)
    return None


async def _read_text(redis: Redis, run_id: str, stage_id: str) -> str:
    """Reads the answer of a stage so far.

    A stage may have hundreds of thousands of chunks: other requests run between its pages.
    """
    text = StageText()
    async for page in log_reader.stage_pages(redis, run_id, stage_id, _PAGE_EVENTS):
        for event in page:
            text.add(event)
    return text.answer()
