"""Chat completion chunks, merged into the answer that they are the pieces of; sans-IO.

    merger = DeltaMerger(tool_names=("get_weather",))
    for chunk in chunks:
        merger.add(chunk)
    merger.result().tool_calls

`add` is every token's way, so it only collects; what needs judgement is judged in
`result`, with the whole answer in view.
Spec: https://platform.openai.com/docs/api-reference/chat-streaming
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stagebus.shared.domain.events import ToolCallRequest
from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.compat.call_assembly import CallFragment, ParsedCall, assemble_calls, parse_call_fragments
from stagebus.worker.model.compat.reasoning_details import Detail, merge_details, parse_details, readable_texts
from stagebus.worker.model.compat.reasoning_text import split_reasoning
from stagebus.worker.model.compat.text_fragments import join_fragments
from stagebus.worker.model.compat.text_tool_calls import offered, split_text_calls
from stagebus.worker.model.finish import FinishTracker, choices, first_choice
from stagebus.worker.model.provider_errors import ReportedError

# The first that a delta has counts: some servers send the same thought under two names.
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
_CALL_REASONS: Final = ("tool_calls", "function_call")
_TEXT_PARTS: Final = ("text", "output_text")
_REASONING_PARTS: Final = ("thinking", "reasoning")
_PART_TEXTS: Final = ("text", "thinking", "reasoning", "summary")
_PART_DEPTH_MAX: Final = 8
_TOKENS_MAX: Final = 2**53  # what JSON's readers agree on
_TOKEN_COUNTS: Final = (
    ("prompt_tokens", "input_tokens"),
    ("completion_tokens", "output_tokens"),
    ("total_tokens", "total_tokens"),
)

_PROMPT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")
_CACHED: Final = ("cached_tokens", "prompt_cache_hit_tokens")
_DIGITS: Final = re.compile(r"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class MergedAnswer:
    """A model's answer. `error` is set where it ended in one; what came before it stands beside it."""

    text: str
    reasoning: str
    refusal: str
    tool_calls: list[ToolCallRequest]
    finish_reason: str | None
    usage: dict[str, Any] | None
    model: str | None
    error: ReportedError | None
    reasoning_details: list[Detail] = field(default_factory=list)

    @property
    def tokens(self) -> Usage | None:
        """The usage in the terms that all providers share; None where it was not sent."""
        return None if self.usage is None else _tokens(self.usage)


class DeltaMerger:
    """Collects one answer.

    Args:
        tool_names: what the model was offered. Calls are looked for in its text only
            where this is not empty.
        taken_ids: of the run's earlier calls; no call gets one of them.
    """

    def __init__(self, tool_names: Collection[str] = (), taken_ids: Collection[str] = ()) -> None:
        self._tool_names = tool_names
        self._taken_ids = taken_ids
        self._ending = FinishTracker()
        self._has_first = False
        self._of_others: list[Mapping[str, Any]] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._details: list[Detail] = []
        self._refusal: list[str] = []
        self._fragments: list[CallFragment] = []
        self._usage: dict[str, Any] | None = None
        self._model: str | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take the next chunk; nothing in it can make this fail."""
        self._ending.see(chunk)
        if self._model is None and isinstance(model := chunk.get("model"), str):
            self._model = model or None
        if isinstance(usage := chunk.get("usage"), dict) and usage:
            self._usage = usage
        elif "x_groq" in chunk and self._usage is None:
            self._usage = _groq_usage(chunk["x_groq"])
        if not self._has_first and not self._look_for_first(chunk):
            return
        for choice in first_choice(chunk):
            self._add_choice(choice)

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        if delta is None:
            delta = self._rest_of(choice.get("message"))
        if isinstance(delta, dict):
            self._add_delta(delta)
        if isinstance(usage := choice.get("usage"), dict) and usage:
            self._usage = usage

    def _look_for_first(self, chunk: Mapping[str, Any]) -> bool:
        """Whether choice 0 is there; the chunks of others are kept till then, as some servers count from one."""
        there = list(choices(chunk))
        self._has_first = any(True for _ in first_choice(chunk))
        if there and not self._has_first:
            self._of_others.append(chunk)
        return self._has_first

    def _take_others(self) -> None:
        """The lowest choice in the place of choice 0, which never came."""
        others = [choice for chunk in self._of_others for choice in choices(chunk) if isinstance(choice["index"], int)]
        lowest = min((choice["index"] for choice in others), default=None)
        self._of_others = []
        for choice in others:
            if choice["index"] == lowest:
                self._has_first = True
                self._add_choice(choice)

    def _rest_of(self, message: object) -> object:
        """A message in a delta's place; at the end of a stream it says all of the text once more."""
        if not isinstance(message, dict) or not self._text or not isinstance(content := message.get("content"), str):
            return message
        content = content.strip()
        begin = next((piece.strip() for piece in self._text if not piece.isspace() and piece), "")
        # Looked at first, as a server may send a message for each token.
        if (
            not begin
            or not content.startswith(begin)
            or not content.startswith(before := join_fragments(self._text).strip())
        ):
            return message
        return {"content": content[len(before) :], "tool_calls": message.get("tool_calls")}

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        content = delta.get("content")
        if isinstance(content, str):
            self._text.append(content)
        elif isinstance(content, list):
            self._add_parts(content)
        elif isinstance(content, dict):
            self._add_parts([content])
        details = None
        if "reasoning_details" in delta:
            details = parse_details(delta)
            self._details += details
        for name in _REASONING_FIELDS:
            if (reasoning := delta.get(name)) and isinstance(reasoning, str):
                self._reasoning.append(reasoning)
                break
        else:
            if details:
                self._reasoning.extend(readable_texts(details))
        if (refusal := delta.get("refusal")) and isinstance(refusal, str):
            self._refusal.append(refusal)
        if delta.get("tool_calls") or delta.get("function_call"):
            self._fragments += parse_call_fragments(delta)

    def _add_parts(self, parts: Iterable[object]) -> None:
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind is None or kind in _TEXT_PARTS:
                self._text.extend(_texts(part))
            elif kind in _REASONING_PARTS:
                self._reasoning.extend(_texts(part))

    def result(self) -> MergedAnswer:
        """The answer so far."""
        if not self._has_first:
            self._take_others()
        text, thoughts = split_reasoning(join_fragments(self._text))
        reasoning = join_fragments(self._reasoning) + thoughts
        calls = assemble_calls(self._fragments, self._tool_names)
        if self._tool_names and not calls:
            text, calls = self._written_calls(text, reasoning)
        return MergedAnswer(
            text=text,
            reasoning=reasoning,
            refusal="".join(self._refusal),
            tool_calls=list(assign_call_ids((offered(call, self._tool_names) for call in calls), self._taken_ids)),
            finish_reason=self._ending.finish_reason,
            usage=self._usage,
            model=self._model,
            error=self._ending.error,
            reasoning_details=merge_details(self._details),
        )

    def _written_calls(self, text: str, reasoning: str) -> tuple[str, list[ParsedCall]]:
        """Calls as text; those of thoughts that nothing follows, too: then the model took them for its answer."""
        # Who says that it calls, and made no call yet, has it in the text wherever that stands.
        says_so = self._ending.finish_reason in _CALL_REASONS
        rest, calls = split_text_calls(text, self._tool_names, looks_into_code=says_so)
        if not calls and not text.strip() and not self._refusal:
            _, calls = split_text_calls(reasoning, self._tool_names, looks_into_code=False)
            calls = [call for call in calls if offered(call, self._tool_names).name in self._tool_names]
        return rest, calls


def _groq_usage(note: object) -> dict[str, Any] | None:
    """Groq's, where it was not asked for usage as others are."""
    usage = note.get("usage") if isinstance(note, dict) else None
    return usage if isinstance(usage, dict) and usage else None


def _texts(part: object, depth: int = 0) -> Iterator[str]:
    """The texts of a content part, however deep it wraps them."""
    if isinstance(part, str):
        yield part
    elif depth > _PART_DEPTH_MAX:
        return
    elif isinstance(part, list):
        for item in part:
            yield from _texts(item, depth + 1)
    elif isinstance(part, dict):
        inner = next((part[name] for name in _PART_TEXTS if name in part), None)
        yield from _texts(inner, depth + 1)


def assign_call_ids(calls: Iterable[ParsedCall], taken_ids: Collection[str]) -> Iterator[ToolCallRequest]:
    """The calls, each under an id of its own: the provider's wherever that is one."""
    calls = list(calls)
    taken = set(taken_ids)
    reserved = {call.id for call in calls}
    number = 0
    for call in calls:
        call_id = call.id
        while not call_id or call_id in taken:
            number += 1
            # Nine letters and digits: the one form that every provider takes back, Mistral's included.
            made = f"call{number:05d}"
            call_id = "" if made in reserved else made
        taken.add(call_id)
        yield ToolCallRequest(
            id=call_id, name=call.name, arguments=call.arguments, extra_content=call.extra_content or None
        )


def _tokens(usage: Mapping[str, Any]) -> Usage:
    prompt, completion, total = (next(filter(None, map(_count, map(usage.get, names))), 0) for names in _TOKEN_COUNTS)
    details = [usage[name] for name in _PROMPT_DETAILS if isinstance(usage.get(name), Mapping)]
    counts = [_count(place.get(name)) for place in (*details, usage) for name in _CACHED if name in place]
    cached = next((count for count in counts if count is not None), None)
    total = total or prompt + completion
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total, cached_tokens=cached)


def _count(value: object) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return int(value) if isinstance(value, int | float) and 0 <= value <= _TOKENS_MAX else None
