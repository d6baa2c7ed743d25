"""The order of a run's stages, and the conversation that each of them gets. Sans-IO.

extraction ──calls──▶ tools ──▶ synthesis ──▶ done
    │  ▲                │
    │  └── next round ──┘   while max_rounds allows
    └── no call: its text is the answer ──▶ done
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.requests import STAGE_PARAMETERS, RunRequest
from stagebus.shared.domain.runs import EXTRACTION, SYNTHESIS, TOOLS, round_stage
from stagebus.shared.domain.stage_results import ModelStageResult, ToolOutcome, ToolStageResult
from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.chat_request import ORIGIN_KEY, MessageOrigin

# The index of each model stage in options that give one value per stage.
_STAGE_OPTION: Final = {EXTRACTION: 0, SYNTHESIS: 1}

Message = dict[str, Any]
NOTHING_ADDED: Final[Mapping[str, Sequence[Message]]] = {}
T = TypeVar("T")
Completed = Mapping[str, StageCompleted]


class NextStage(NamedTuple):
    """A stage to run: its id, its kind and its round, from 1."""

    stage_id: str
    kind: str
    round_number: int


def next_stage(request: RunRequest, completed: Completed) -> NextStage | None:
    """Returns the first stage that is not complete; None when the run has its answer."""
    for number in range(1, request.max_rounds + 1):
        extraction, tools = round_stage(EXTRACTION, number), round_stage(TOOLS, number)
        if extraction not in completed:
            return NextStage(extraction, EXTRACTION, number)
        if not model_result(completed[extraction]).tool_calls:
            return None
        if tools not in completed:
            return NextStage(tools, TOOLS, number)
    if request.synthesis and SYNTHESIS not in completed:
        return NextStage(SYNTHESIS, SYNTHESIS, request.max_rounds)
    return None


def conversation(
    request: RunRequest, completed: Completed, added: Mapping[str, Sequence[Message]] = NOTHING_ADDED
) -> list[Message]:
    """Returns the request's messages, then each round's calls and their results.

    Args:
        added: messages that joined the run, by the stage before which the model gets them.
    """
    messages = [*request.messages]
    for number in range(1, request.max_rounds + 1):
        extraction_id = round_stage(EXTRACTION, number)
        messages += added.get(extraction_id, ())
        extraction, tools = completed.get(extraction_id), completed.get(round_stage(TOOLS, number))
        if extraction is None or tools is None:
            break
        outcomes = tool_result(tools).outcomes
        messages.append(_assistant_message(extraction, outcomes))
        messages += [{"role": "tool", "tool_call_id": o.call_id, "content": o.content} for o in outcomes]
    return [*messages, *added.get(SYNTHESIS, ())]


def _assistant_message(completed: StageCompleted, outcomes: Sequence[ToolOutcome]) -> Message:
    """Returns the model's answer with the calls as they ran: an approval may have changed their arguments."""
    result = model_result(completed)
    arguments_by_id = {outcome.call_id: outcome.arguments for outcome in outcomes}
    origin = MessageOrigin(result.provider, result.reasoning or "", result.reasoning_details or (), completed.items)
    return result.message(arguments_by_id) | {ORIGIN_KEY: origin}


def model_result(completed: StageCompleted) -> ModelStageResult:
    """Decodes the result of an extraction or a synthesis."""
    return ModelStageResult.model_validate(completed.result)


def tool_result(completed: StageCompleted) -> ToolStageResult:
    """Decodes the result of a tools stage."""
    return ToolStageResult.model_validate(completed.result)


def tool_choice(request: RunRequest, stage: NextStage) -> str | dict[str, Any]:
    """Returns the request's `tool_choice` for this stage.

    A choice that forces a tool call applies to the first round only: in later rounds, the model would never
    get to its answer.
    """
    return "auto" if stage.round_number > 1 and request.tool_choice != "none" else request.tool_choice


def stage_option(options: tuple[T, T], stage: NextStage) -> T:
    """Returns this stage's value of an option that has one value per model stage."""
    return options[_STAGE_OPTION[stage.kind]]


def stage_parameters(request: RunRequest, stage: NextStage) -> dict[str, Any]:
    """Returns this stage's parameters that were given, by name."""
    values = {name: stage_option(getattr(request, name), stage) for name in STAGE_PARAMETERS}
    return {name: value for name, value in values.items() if value is not None}


def total_usage(completed: Completed) -> Usage:
    """Returns the sum of all stages' tokens."""
    return sum((stage.usage for stage in completed.values() if stage.usage is not None), Usage())


def call_ids(completed: Completed) -> set[str]:
    """Returns the ids of all calls so far, which a later round must not reuse."""
    ids: set[str] = set()
    for stage_id, stage in completed.items():
        if not stage_id.startswith(TOOLS):
            ids |= {call.id for call in model_result(stage).tool_calls}
    return ids
