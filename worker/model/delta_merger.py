"""Merges chat completion chunks into the whole answer; sans-IO.

    merger = DeltaMerger(tool_names=("get_weather",))
    for chunk in chunks:
        merger.add(chunk)
    merger.result().tool_calls

`add` runs once for each token, so it only collects. Everything that needs the whole answer,
such as the assembly of calls, is done in `result`.
Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.shared.domain.usage import Usage
from stagebus.shared.model_text.chunk_text import REASONING_FIELDS
from stagebus.shared.model_text.content_parts import split_parts
from stagebus.shared.model_text.reasoning_text import split_reasoning
from stagebus.shared.model_text.text_fragments import join_fragments
from stagebus.worker.model.call_ids import assign_call_ids
from stagebus.worker.model.chat_chunks import ITEMS_KEY, AnswerItems
from stagebus.worker.model.compat.argument_types import fit_arguments
from stagebus.worker.model.compat.call_arguments import clean_arguments
from stagebus.worker.model.compat.call_assembly import assemble_calls
from stagebus.worker.model.compat.call_fragments import CallFragment, ParsedCall, parse_call_fragments
from stagebus.worker.model.compat.error_shapes import ReportedError
from stagebus.worker.model.compat.reasoning_details import Detail, merge_details, parse_details, readable_texts
from stagebus.worker.model.compat.text_tool_calls import match_tool_name, split_text_calls
from stagebus.worker.model.compat.usage_fields import groq_usage, parse_usage
from stagebus.worker.model.finish import FinishTracker, choices, first_choice
from stagebus.worker.model.token_meter import TokenMeter

NO_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
# The reader has counted these for its limit.
_KEPT_OF_OTHERS: Final = ("index", "delta", "message")
# So many pieces of text are joined to find repetitions: about 30 ms of work for an answer.
_COMPARED_MAX: Final = 1_000_000
_CALL_REASONS: Final = ("tool_calls", "function_call")


@dataclass(frozen=True, slots=True)
class MergedAnswer:
    """A model's answer. If it ended in an error, `error` is set and the other fields hold what came before."""

    text: str
    reasoning: str
    refusal: str
    tool_calls: list[ToolCallRequest]
    finish_reason: str | None
    usage: dict[str, Any] | None
    model: str | None
    error: ReportedError | None
    reasoning_details: list[Detail] = field(default_factory=list)
    items: AnswerItems | None = None

    @property
    def tokens(self) -> Usage | None:
        """The token counts in the form common to all providers, or None if the provider sent none."""
        return None if self.usage is None else parse_usage(self.usage)


class DeltaMerger:
    """Collects the chunks of one answer.

    Args:
        tool_names: the tools that the model was offered. Without any, calls in the text stay text.
        schemas: the schemas of their arguments, by name.
        taken_ids: the ids of the run's earlier calls. No new call gets one of them.
        meter: counts the answer's tokens as its chunks are added.
    """

    def __init__(
        self,
        tool_names: Collection[str] = (),
        taken_ids: Collection[str] = (),
        schemas: Mapping[str, Mapping[str, Any]] = NO_SCHEMAS,
        meter: TokenMeter | None = None,
    ) -> None:
        self._tool_names = tool_names
        self._taken_ids = taken_ids
        self._schemas = schemas
        self._tracker = FinishTracker()
        self._has_first = False
        self._others: list[dict[str, Any]] = []  # choices before choice 0
        self._text: list[str] = []
        self._blanks = 0  # so many pieces at the text's beginning have only spaces
        self._compared = 0
        self._reasoning: list[str] = []
        self._details: list[Detail] = []
        self._refusal: list[str] = []
        self._fragments: list[CallFragment] = []
        self._meter = TokenMeter() if meter is None else meter
        self._model: str | None = None
        self._items: AnswerItems | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Adds the next chunk. Never raises, whatever the chunk contains."""
        self._tracker.observe(chunk)
        self._meter.has_answer = True
        if self._model is None and isinstance(model := chunk.get("model"), str):
            self._model = model or None
        if isinstance(usage := chunk.get("usage"), dict) and usage:
            self._meter.report(usage)
        elif ITEMS_KEY in chunk:
            self._items = chunk[ITEMS_KEY]
        elif "x_groq" in chunk and (usage := groq_usage(chunk["x_groq"])):
            self._meter.report_extension(usage)
        if not self._has_first and not self._look_for_first(chunk):
            return
        for choice in first_choice(chunk):
            self._add_choice(choice)

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        if delta is None:
            delta = self._without_repetition(choice.get("message"))
        if isinstance(delta, dict):
            self._add_delta(delta)
        self._report_usage(choice)

    def _report_usage(self, choice: Mapping[str, Any]) -> None:
        if isinstance(usage := choice.get("usage"), dict) and usage:
            self._meter.report(usage)

    def _look_for_first(self, chunk: Mapping[str, Any]) -> bool:
        """Returns whether choice 0 has come. Until then, other choices are kept: some servers count from one."""
        found = list(choices(chunk))
        self._has_first = any(True for _ in first_choice(chunk))
        if not self._has_first:
            for choice in found:
                self._report_usage(choice)
                self._others.append({name: choice[name] for name in _KEPT_OF_OTHERS if name in choice})
        return self._has_first

    def _use_lowest_choice(self) -> None:
        """Uses the choice with the lowest index, since choice 0 never came."""
        others, self._others = self._others, []
        lowest = min((index for choice in others if isinstance(index := choice.get("index"), int)), default=None)
        for choice in others:
            if lowest is not None and choice.get("index") == lowest:
                self._has_first = True
                self._add_choice(choice)

    def _without_repetition(self, message: object) -> object:
        """Returns a message that was sent in place of a delta, without the text that earlier deltas brought."""
        if not isinstance(message, dict) or not self._text or not isinstance(content := message.get("content"), str):
            return message
        content = content.strip()
        while self._blanks < len(self._text) and not self._text[self._blanks].strip():
            self._blanks += 1
        start = self._text[self._blanks].strip() if self._blanks < len(self._text) else ""
        # Check the first piece before joining all of them: some servers send a message for each token.
        if not start or not content.startswith(start) or self._compared > _COMPARED_MAX:
            return message
        self._compared += len(self._text)
        before = join_fragments(self._text).strip()
        if not content.startswith(before):
            return message
        return {"content": content[len(before) :], "tool_calls": message.get("tool_calls")}

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        content = delta.get("content")
        if isinstance(content, str):
            self._text.append(content)
            self._meter.add_output(content)
        elif isinstance(content, list | dict):
            text, reasoning = split_parts(content)
            self._text += text
            self._reasoning += reasoning
            self._meter.add_output(*text, *reasoning)
        details = None
        if "reasoning_details" in delta:
            details = parse_details(delta)
            self._details += details
        for name in REASONING_FIELDS:
            if (reasoning_text := delta.get(name)) and isinstance(reasoning_text, str):
                self._add_reasoning(reasoning_text)
                break
        else:
            if details:
                self._add_reasoning(*readable_texts(details))
        if (refusal := delta.get("refusal")) and isinstance(refusal, str):
            self._refusal.append(refusal)
            self._meter.add_output(refusal)
        if delta.get("tool_calls") or delta.get("function_call"):
            fragments = parse_call_fragments(delta)
            self._fragments += fragments
            self._meter.add_output(*(part for fragment in fragments for part in (fragment.name, fragment.arguments)))

    def _add_reasoning(self, *texts: str) -> None:
        self._reasoning += texts
        self._meter.add_output(*texts)

    def result(self) -> MergedAnswer:
        """Returns the answer so far."""
        if not self._has_first:
            self._use_lowest_choice()
        final_text = None if self._items is None else self._items.final_text
        text, reasoning_in_text = split_reasoning(join_fragments(self._text) if final_text is None else final_text)
        reasoning = join_fragments(self._reasoning) + reasoning_in_text
        calls = assemble_calls(self._fragments, self._tool_names)
        if self._tool_names and not calls:
            text, calls = self._split_text_calls(text, reasoning)
        named = (clean_call(match_tool_name(call, self._tool_names), self._schemas) for call in calls)
        return MergedAnswer(
            text=text,
            reasoning=reasoning,
            refusal="".join(self._refusal),
            tool_calls=list(assign_call_ids(named, self._taken_ids)),
            finish_reason=self._tracker.finish_reason,
            usage=self._meter.usage,
            model=self._model,
            error=self._tracker.error,
            reasoning_details=merge_details(self._details),
            items=self._items,
        )

    def _split_text_calls(self, text: str, reasoning: str) -> tuple[str, list[ParsedCall]]:
        """Finds calls in the text, or in the reasoning if nothing follows it: then the model's answer is there."""
        # If the finish reason announces a call and there is none yet, it is in the text, even inside a code block.
        has_call_reason = self._tracker.finish_reason in _CALL_REASONS
        rest, calls = split_text_calls(text, self._tool_names, looks_into_code=has_call_reason)
        if not calls and not text.strip() and not self._refusal:
            _, calls = split_text_calls(reasoning, self._tool_names, looks_into_code=False)
            calls = [call for call in calls if match_tool_name(call, self._tool_names).name in self._tool_names]
        return rest, calls


def clean_call(call: ParsedCall, schemas: Mapping[str, Mapping[str, Any]]) -> ParsedCall:
    """Returns the call with its arguments as clean JSON in the types of its tool, if they can be read so."""
    arguments = clean_arguments(call.arguments)
    schema = schemas.get(call.name)
    return call._replace(arguments=arguments if schema is None else fit_arguments(arguments, schema, call.texts))
