"""The model stages, extraction and synthesis: ask the model and yield its answer as it arrives."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from stagebus.shared.config.provider_schema import REASONING_DETAILS
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.events import Event, ModelStageResult, StageCompleted, ToolCompletionChunk
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import ModelUnavailable
from stagebus.worker.model.call_ids import assign_call_ids
from stagebus.worker.model.chat_chunks import ITEMS_KEY
from stagebus.worker.model.compat.prompted_tools import (
    correction_messages,
    find_call_faults,
    parse_prompted_calls,
    prompt_with_tools,
)
from stagebus.worker.model.compat.text_tool_calls import has_unread_call
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer, clean_call
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.model.token_meter import TokenMeter

Chunk = dict[str, Any]

# Fields that every chunk of a stage repeats (`stage_started` has them once) or that carry nothing of use.
_LEFT_OUT: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "obfuscation"})

# The finish reason of an answer in which the model refuses. Providers send such text apart, and "stop" with it.
REFUSAL: Final = "refusal"
# Limits the text for people; the model gets the whole text.
_FAULT_MAX_CHARS: Final = 200


class InvalidToolCalls(Exception):
    """The tool calls of a prompted model cannot be executed. The stage asks once more and adds `messages`."""

    def __init__(self, faults: Sequence[str], answer: str, usage: Usage | None) -> None:
        words = " ".join(faults[0].split())
        super().__init__(f"the model's call cannot be carried out: {words[:_FAULT_MAX_CHARS]}")
        self.messages = correction_messages(answer, faults)
        self.usage = usage or Usage()


@dataclass(frozen=True, slots=True)
class PromptedTools:
    """The settings for a model that has no native tool calls.

    Attributes:
        check: returns the fault of a call with that name and those arguments, or None.
        first_answer: the invalid calls of the first answer; the second answer is accepted as it is.
    """

    check: Callable[[str, str], Awaitable[str | None]]
    first_answer: InvalidToolCalls | None = None


async def model_stage(
    stage_id: str,
    model: ModelClient,
    request: ModelRequest,
    taken_call_ids: set[str],
    prompting: PromptedTools | None = None,
    meter: TokenMeter | None = None,
) -> AsyncGenerator[Event, None]:
    """Asks the model and yields its answer chunk by chunk.

    A stage yields events and touches neither Redis nor arq: the runner appends them,
    retries and restarts. Closing the generator closes the provider's connection.

    Args:
        taken_call_ids: the ids of earlier rounds' calls; new ids differ from them.
        prompting: set if the tools are described in the prompt.
        meter: counts the request's tokens while the answer streams.

    Yields:
        Any number of `ToolCompletionChunk`, then exactly one `StageCompleted`.

    Raises:
        ModelError: the provider failed; retry the stage if it is `retryable`.
        InvalidToolCalls: a prompted model's first answer has calls that cannot be executed.
    """
    # Without tools on offer, text that looks like a call stays text.
    schemas = _schemas(request)
    names = () if prompting is not None else tuple(schemas)
    merger = DeltaMerger(tool_names=names, taken_ids=taken_call_ids, schemas=schemas, meter=meter)
    asked = request if prompting is None else _prompted_request(request, prompting)
    async with aclosing(model.stream(asked)) as chunks:
        async for chunk in chunks:
            merger.add(chunk)
            if ITEMS_KEY not in chunk:
                yield ToolCompletionChunk.of(stage_id, strip_chunk(chunk))
    merged = merger.result()
    if names and not merged.tool_calls and has_unread_call(merged.text, names):
        raise ModelUnavailable("the model's tool call cannot be read")
    usage = merged.tokens
    if prompting is not None:
        merged = await _parse_prompted_answer(merged, request, prompting, taken_call_ids)
        if prompting.first_answer is not None:
            usage = prompting.first_answer.usage + (usage or Usage())
    route = request.route
    if usage is not None and route is not None:
        usage = usage.model_copy(update={"cost": route.cost(usage)})
    wanted = route.abilities.reasoning_field if route is not None and merged.tool_calls else None
    result = ModelStageResult(
        text=merged.text + merged.refusal,
        tool_calls=merged.tool_calls,
        finish_reason=REFUSAL if merged.refusal and not merged.tool_calls else merged.finish_reason,
        model=merged.model,
        provider=None if route is None else route.provider,
        reasoning=merged.reasoning if wanted not in (None, REASONING_DETAILS) else None,
        reasoning_details=merged.reasoning_details if wanted == REASONING_DETAILS else None,
    )
    yield StageCompleted(
        stage_id=stage_id, result=result.model_dump(exclude_none=True), usage=usage, items=_own_items(merged, route)
    )


def _own_items(merged: MergedAnswer, route: ModelRoute | None) -> ModelItems | None:
    """Returns the items that only this model understands, for its next request."""
    if route is None or merged.items is None or not merged.items.items:
        return None
    return ModelItems(
        api=merged.items.api, provider=route.provider, model=route.model_id, items=list(merged.items.items)
    )


def _offered(request: ModelRequest) -> list[dict[str, Any]]:
    """Returns the tools that the model may call."""
    return [] if request.tool_choice == "none" else request.tools or []


def _schemas(request: ModelRequest) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in _offered(request)}


def _prompted_request(request: ModelRequest, prompting: PromptedTools) -> ModelRequest:
    is_one_call = request.parallel_tool_calls is False
    has_example = request.route is not None and request.route.abilities.worked_example
    messages = prompt_with_tools(
        request.messages, _offered(request), request.tool_choice, is_one_call=is_one_call, has_example=has_example
    )
    further = [] if prompting.first_answer is None else prompting.first_answer.messages
    return replace(request, messages=[*messages, *further], tools=None, tool_choice=None, parallel_tool_calls=None)


async def _parse_prompted_answer(
    merged: MergedAnswer, request: ModelRequest, prompting: PromptedTools, taken_call_ids: set[str]
) -> MergedAnswer:
    """Returns the answer with the calls that its text contains.

    Raises:
        InvalidToolCalls: some of them cannot be executed, and this is the first answer.
    """
    names = [tool["function"]["name"] for tool in _offered(request)]
    if not names:
        return merged
    rest, calls = merged.text, merged.tool_calls  # a server may have parsed the calls already
    if not calls:
        rest, found = parse_prompted_calls(merged.text, names)
        calls = list(assign_call_ids((clean_call(call, _schemas(request)) for call in found), taken_call_ids))
    if request.parallel_tool_calls is False:
        calls = calls[:1]
    faults = (
        []
        if prompting.first_answer is not None
        else await find_call_faults(rest, calls, request.tool_choice, prompting.check)
    )
    if faults:
        raise InvalidToolCalls(faults, merged.text, merged.tokens)
    return replace(merged, text=rest, tool_calls=calls)


def strip_chunk(chunk: Chunk) -> Chunk:
    """Returns the chunk without the fields that all chunks of its stage repeat, and without nulls."""
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
