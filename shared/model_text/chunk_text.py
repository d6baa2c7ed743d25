"""Extracts text, reasoning and refusals from chat completion chunks, under the field names of different servers; sans-IO."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stagebus.shared.model_text.content_parts import split_parts
from stagebus.shared.model_text.reasoning_text import split_reasoning
from stagebus.shared.model_text.text_fragments import join_fragments

# Some servers send the same reasoning in both fields, so the first one with content counts.
REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
# The index of the first choice, as servers write it.
FIRST_INDEX: Final = (0, None, "0", "")


class ChunkText(NamedTuple):
    """The text that one chunk adds."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""


NO_TEXT: Final = ChunkText()


def chunk_text(chunk: Mapping[str, Any], *, is_delta: bool = False) -> ChunkText:
    """Returns the text of a chunk's first choice. Never raises, whatever the chunk contains.

    Args:
        is_delta: leave out whole messages, with which some servers repeat what their chunks said.
    """
    content: list[str] = []
    reasoning: list[str] = []
    refusal: list[str] = []
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict) or choice.get("index") not in FIRST_INDEX:
            continue
        delta = choice.get("delta") or (None if is_delta else choice.get("message"))
        if isinstance(delta, dict):
            _add_delta(delta, content, reasoning, refusal)
    return ChunkText("".join(content), "".join(reasoning), "".join(refusal))


def _add_delta(delta: Mapping[str, Any], content: list[str], reasoning: list[str], refusal: list[str]) -> None:
    text = delta.get("content")
    if isinstance(text, str):
        content.append(text)
    elif isinstance(text, list | dict):
        texts, thoughts = split_parts(text)
        content += texts
        reasoning += thoughts
    thought = next((delta[name] for name in REASONING_FIELDS if delta.get(name)), None)
    if isinstance(thought, str):
        reasoning.append(thought)
    if isinstance(refused := delta.get("refusal"), str):
        refusal.append(refused)


def partial_answer(texts: Sequence[ChunkText]) -> str:
    """Returns the answer, or its refusal, as far as the chunks of a stage say it; without reasoning."""
    answer, _ = split_reasoning(join_fragments([text.content for text in texts]))
    return answer + "".join([text.refusal for text in texts])
