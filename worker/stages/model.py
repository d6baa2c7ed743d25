"""The model stages, extraction and synthesis: ask the model and pass on what it says as it arrives."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from shared.events import Event, ModelStageResult, StageCompleted, ToolCompletionChunk
from worker.model.client import Model, ModelRequest
from worker.model.deltas import Merger

Chunk = dict[str, Any]

# What a chunk repeats of its stage (`stage_started` has it once), or carries as noise.
_LEFT_OUT: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "obfuscation"})


async def model_stage(
    stage_id: str, model: Model, request: ModelRequest, taken_call_ids: set[str]
) -> AsyncGenerator[Event, None]:
    """Ask the model and yield its answer chunk by chunk.

    A stage yields events and touches neither Redis nor arq: the runner appends them,
    retries and restarts. Closing the generator closes the provider's connection.

    Args:
        taken_call_ids: ids that calls of earlier rounds have; new ones differ.

    Yields:
        Any number of `ToolCompletionChunk`, then exactly one `StageCompleted`.

    Raises:
        ModelError: the provider failed; its `retryable` says whether to do the stage again.
    """
    merger = Merger(tool_names=[tool["function"]["name"] for tool in request.tools or ()], taken_ids=taken_call_ids)
    async with aclosing(model.stream(request)) as chunks:
        async for chunk in chunks:
            merger.add(chunk)
            yield ToolCompletionChunk.model_construct(stage_id=stage_id, tool_results=lean(chunk))
    merged = merger.result()
    result = ModelStageResult(
        text=merged.text, tool_calls=merged.tool_calls, finish_reason=merged.finish_reason, model=merged.model
    )
    yield StageCompleted(stage_id=stage_id, result=result.model_dump(exclude_none=True), usage=merged.tokens)


def lean(chunk: Chunk) -> Chunk:
    """The chunk without what its stage's every chunk repeats, and without nulls."""
    kept = {name: value for name, value in chunk.items() if value is not None and name not in _LEFT_OUT}
    choices = kept.get("choices")
    if isinstance(choices, list):
        kept["choices"] = [_lean_choice(choice) if isinstance(choice, dict) else choice for choice in choices]
    return kept


def _lean_choice(choice: Chunk) -> Chunk:
    kept = {name: value for name, value in choice.items() if value is not None}
    delta = kept.get("delta")
    if isinstance(delta, dict):
        kept["delta"] = {name: value for name, value in delta.items() if value is not None}
    return kept
