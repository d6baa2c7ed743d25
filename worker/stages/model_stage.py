"""The model stages, extraction and synthesis: ask the model and yield its answer as it arrives."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final

from stagebus.shared.config.provider_schema import REASONING_DETAILS
from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.events import Event, StageCompleted, ToolCompletionChunk
from stagebus.shared.domain.model_items import ModelItems
from stagebus.shared.domain.stage_results import CUT_REASONS, ModelStageResult
from stagebus.shared.domain.usage import Usage
from stagebus.shared.errors import InvalidOutput, ModelUnavailable
from stagebus.worker.model.call_ids import assign_call_ids
from stagebus.worker.model.chat_chunks import ITEMS_KEY
from stagebus.worker.model.compat.prompted_tools import (
    correction_messages,
    find_call_faults,
    parse_prompted_calls,
    prompt_with_tools,
    with_system_text,
)
from stagebus.worker.model.compat.text_tool_calls import has_unread_call
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer, clean_call
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.model.token_meter import TokenMeter
from stagebus.worker.stages import structured_answer
from stagebus.worker.stages.structured_answer import AnswerFormat

Chunk = dict[str, Any]
Message = dict[str, Any]

# Fields that every chunk of a stage repeats (`stage_started` has them once) or that carry nothing of use.
_LEFT_OUT: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "obfuscation"})

# The finish reason of an answer in which the model refuses. Providers send such text apart, and "stop" with it.
REFUSAL: Final = "refusal"
# Limits the text for people; the model gets the whole text.
_FAULT_MAX_CHARS: Final = 200


class InvalidAnswer(Exception):
    """The model's answer cannot be used: it has faults, and the stage asks once more with further `messages`."""

    def __init__(self, what: str, faults: Sequence[str], messages: list[Message], usage: Usage | None) -> None:
        words = " ".join(faults[0].split())
        super().__init__(f"{what}: {words[:_FAULT_MAX_CHARS]}")
        self.messages = messages
        self.usage = usage or Usage()


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How the stage reads the answer of a model that is only told in the prompt what to write.

    Attributes:
        check_call: set if the tools are described in the prompt; returns the fault of a call with that name and those
            arguments, or None.
        answer_format: the form of the answer, if it is not plain text.
        first_answer: the first answer, if it could not be used. This request asks for the second one.
    """

    check_call: Callable[[str, str], Awaitable[str | None]] | None = None
    answer_format: AnswerFormat | None = None
    first_answer: InvalidAnswer | None = None


NO_RULES: Final = AnswerRules()


async def model_stage(
    stage_id: str,
    model: ModelClient,
    request: ModelRequest,
    taken_call_ids: set[str],
    rules: AnswerRules = NO_RULES,
    meter: TokenMeter | None = None,
) -> AsyncGenerator[Event, None]:
    """Asks the model and yields its answer chunk by chunk.

    A stage yields events and touches neither Redis nor arq: the runner appends them,
    retries and restarts. Closing the generator closes the provider's connection.

    Args:
        taken_call_ids: the ids of earlier rounds' calls; new ids differ from them.
        meter: counts the request's tokens while the answer streams.

    Yields:
        Any number of `ToolCompletionChunk`, then exactly one `StageCompleted`.

    Raises:
        ModelError: the provider failed; retry the stage if it is `retryable`.
        InvalidAnswer: the first answer has calls that cannot be executed, or not the form that was asked for.
        InvalidOutput: the second answer does not have that form either, or the answer was cut off.
    """
    # Without tools on offer, text that looks like a call stays text.
    schemas = _schemas(request)
    names = () if rules.check_call is not None else tuple(schemas)
    merger = DeltaMerger(tool_names=names, taken_ids=taken_call_ids, schemas=schemas, meter=meter)
    asked = _request_by_rules(request, rules)
    async with aclosing(model.stream(asked)) as chunks:
        async for chunk in chunks:
            merger.add(chunk)
            if ITEMS_KEY not in chunk:
                yield ToolCompletionChunk.of(stage_id, strip_chunk(chunk))
    merged = merger.result()
    if names and not merged.tool_calls and has_unread_call(merged.text, names):
        raise ModelUnavailable("the model's tool call cannot be read")
    if rules.check_call is not None:
        merged = await _parse_prompted_answer(merged, request, rules, taken_call_ids)
    if rules.answer_format is not None and not merged.tool_calls and not merged.refusal:
        merged = replace(merged, text=await _checked_text(merged, rules, rules.answer_format))
    yield _completion(stage_id, merged, request.route, rules)


def _completion(stage_id: str, merged: MergedAnswer, route: ModelRoute | None, rules: AnswerRules) -> StageCompleted:
    """Returns the stage's last event: the answer, and the tokens of both requests if the first answer was unusable."""
    usage = merged.tokens
    if rules.first_answer is not None:
        usage = rules.first_answer.usage + (usage or Usage())
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
    return StageCompleted(
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


def _request_by_rules(request: ModelRequest, rules: AnswerRules) -> ModelRequest:
    """Returns the request as the model gets it, with what it is only told in the prompt."""
    if rules.check_call is not None:
        request = _prompted_request(request)
    if rules.answer_format is not None:
        is_known = request.response_format is not None
        if not is_known or rules.answer_format.is_any_object:  # OpenAI's JSON mode wants to be mentioned in the prompt
            told = with_system_text(request.messages, rules.answer_format.prompt)
            request = replace(request, messages=told)
    if rules.first_answer is not None:
        request = replace(request, messages=[*request.messages, *rules.first_answer.messages])
    return request


def _prompted_request(request: ModelRequest) -> ModelRequest:
    is_one_call = request.parallel_tool_calls is False
    has_example = request.route is not None and request.route.abilities.worked_example
    messages = prompt_with_tools(
        request.messages, _offered(request), request.tool_choice, is_one_call=is_one_call, has_example=has_example
    )
    return replace(request, messages=messages, tools=None, tool_choice=None, parallel_tool_calls=None)


async def _parse_prompted_answer(
    merged: MergedAnswer, request: ModelRequest, rules: AnswerRules, taken_call_ids: set[str]
) -> MergedAnswer:
    """Returns the answer with the calls that its text contains.

    Raises:
        InvalidAnswer: some of them cannot be executed, and this is the first answer.
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
    assert rules.check_call is not None, "the tools are described in the prompt"
    faults = (
        []
        if rules.first_answer is not None
        else await find_call_faults(rest, calls, request.tool_choice, rules.check_call)
    )
    if faults:
        again = correction_messages(merged.text, faults)
        raise InvalidAnswer("the model's call cannot be carried out", faults, again, merged.tokens)
    return replace(merged, text=rest, tool_calls=calls)


async def _checked_text(merged: MergedAnswer, rules: AnswerRules, answer_format: AnswerFormat) -> str:
    """Returns the JSON text of an answer.

    Raises:
        InvalidAnswer: it does not have the form, and this is the first answer.
        InvalidOutput: the same, and this is the second answer, or it was cut off.
    """
    text, faults = await answer_format.check(merged.text)
    if not faults:
        return text
    if merged.finish_reason in CUT_REASONS:
        raise InvalidOutput(f"the answer was cut off ({merged.finish_reason})")
    if rules.first_answer is not None:
        raise InvalidOutput(faults[0])
    again = structured_answer.correction_messages(merged.text, faults)
    raise InvalidAnswer("the answer does not have the form of response_format", faults, again, merged.tokens)


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
