"""The model stages, extraction and synthesis: ask the model and pass on what it says as it arrives."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from stagebus.shared.config.provider_schema import REASONING_DETAILS
from stagebus.shared.domain.events import Event, ModelStageResult, StageCompleted, ToolCompletionChunk
from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.call_ids import assign_call_ids
from stagebus.worker.model.compat.prompted_tools import (
    correction_messages,
    find_call_faults,
    parse_prompted_calls,
    prompt_with_tools,
)
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.model_client import ModelClient, ModelRequest

Chunk = dict[str, Any]

# What a chunk repeats of its stage (`stage_started` has it once), or carries as noise.
_LEFT_OUT: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "obfuscation"})

# Of what is told to people; the model is told all of it.
_FAULT_MAX_CHARS: Final = 200


class InvalidToolCalls(Exception):
    """What a prompted model called cannot be carried out: the stage is to be done once more, with this."""

    def __init__(self, faults: Sequence[str], answer: str, usage: Usage | None) -> None:
        words = " ".join(faults[0].split())
        super().__init__(f"the model's call cannot be carried out: {words[:_FAULT_MAX_CHARS]}")
        self.messages = correction_messages(answer, faults)
        self.usage = usage or Usage()


@dataclass(frozen=True, slots=True)
class PromptedTools:
    """How to ask a model that cannot call tools by itself.

    Attributes:
        check: what is wrong with a call of that name with those arguments, or None.
        again: what was wrong with its first answer; its second is taken as it is.
    """

    check: Callable[[str, str], str | None]
    again: InvalidToolCalls | None = None


async def model_stage(
    stage_id: str,
    model: ModelClient,
    request: ModelRequest,
    taken_call_ids: set[str],
    prompting: PromptedTools | None = None,
) -> AsyncGenerator[Event, None]:
    """Ask the model and yield its answer chunk by chunk.

    A stage yields events and touches neither Redis nor arq: the runner appends them,
    retries and restarts. Closing the generator closes the provider's connection.

    Args:
        taken_call_ids: ids that calls of earlier rounds have; new ones differ.
        prompting: set where the model is told of its tools in words.

    Yields:
        Any number of `ToolCompletionChunk`, then exactly one `StageCompleted`.

    Raises:
        ModelError: the provider failed; its `retryable` says whether to do the stage again.
        InvalidToolCalls: a prompted model's first answer will not do.
    """
    # Where no call is wanted, what looks like one is text.
    names = [] if prompting is not None else [tool["function"]["name"] for tool in _offered(request)]
    merger = DeltaMerger(tool_names=names, taken_ids=taken_call_ids)
    asked = request if prompting is None else _in_words(request, prompting)
    async with aclosing(model.stream(asked)) as chunks:
        async for chunk in chunks:
            merger.add(chunk)
            yield ToolCompletionChunk.of(stage_id, strip_chunk(chunk))
    merged = merger.result()
    usage = merged.tokens
    if prompting is not None:
        merged = _read_words(merged, request, prompting, taken_call_ids)
        if prompting.again is not None:
            usage = prompting.again.usage + (usage or Usage())
    route = request.route
    if usage is not None and route is not None:
        usage = usage.model_copy(update={"cost": route.cost(usage)})
    wanted = route.abilities.reasoning_field if route is not None and merged.tool_calls else None
    result = ModelStageResult(
        text=merged.text,
        tool_calls=merged.tool_calls,
        finish_reason=merged.finish_reason,
        model=merged.model,
        provider=None if route is None else route.provider,
        reasoning=merged.reasoning if wanted not in (None, REASONING_DETAILS) else None,
        reasoning_details=merged.reasoning_details if wanted == REASONING_DETAILS else None,
    )
    yield StageCompleted(stage_id=stage_id, result=result.model_dump(exclude_none=True), usage=usage)


def _offered(request: ModelRequest) -> list[dict[str, Any]]:
    """The tools that the model may call."""
    return [] if request.tool_choice == "none" else request.tools or []


def _in_words(request: ModelRequest, prompting: PromptedTools) -> ModelRequest:
    is_one_call = request.parallel_tool_calls is False
    has_example = request.route is not None and request.route.abilities.worked_example
    messages = prompt_with_tools(
        request.messages, _offered(request), request.tool_choice, is_one_call=is_one_call, has_example=has_example
    )
    further = [] if prompting.again is None else prompting.again.messages
    return replace(request, messages=[*messages, *further], tools=None, tool_choice=None, parallel_tool_calls=None)


def _read_words(
    merged: MergedAnswer, request: ModelRequest, prompting: PromptedTools, taken_call_ids: set[str]
) -> MergedAnswer:
    """The answer with the calls that stand in its text.

    Raises:
        InvalidToolCalls: not all of them can be carried out, and the model has one more go.
    """
    names = [tool["function"]["name"] for tool in _offered(request)]
    if not names:
        return merged
    rest, calls = merged.text, merged.tool_calls  # a server may have found the calls by itself
    if not calls:
        rest, found = parse_prompted_calls(merged.text, names)
        calls = list(assign_call_ids(found, taken_call_ids))
    if request.parallel_tool_calls is False:
        calls = calls[:1]
    faults = [] if prompting.again is not None else find_call_faults(rest, calls, request.tool_choice, prompting.check)
    if faults:
        raise InvalidToolCalls(faults, merged.text, merged.tokens)
    return replace(merged, text=rest, tool_calls=calls)


def strip_chunk(chunk: Chunk) -> Chunk:
    """The chunk without what its stage's every chunk repeats, and without nulls."""
    kept = {name: value for name, value in chunk.items() if value is not None and name not in _LEFT_OUT}
    choices = kept.get("choices")
    if isinstance(choices, list):
        kept["choices"] = [_strip_choice(choice) if isinstance(choice, dict) else choice for choice in choices]
    return kept


def _strip_choice(choice: Chunk) -> Chunk:
    kept = {name: value for name, value in choice.items() if value is not None}
    delta = kept.get("delta")
    if isinstance(delta, dict):
        kept["delta"] = {name: value for name, value in delta.items() if value is not None}
    return kept
