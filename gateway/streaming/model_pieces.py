"""The pieces of text and reasoning in a model stage's chunks, in the order in which a view shows them."""

from typing import Any, NamedTuple

from stagebus.shared.domain.runs import RUN_STAGE, TOOLS
from stagebus.shared.model_text.chunk_text import chunk_text


class Piece(NamedTuple):
    """A part of a model's text or refusal, or of its reasoning."""

    text: str
    is_reasoning: bool = False


def is_model_stage(stage_id: str) -> bool:
    """Returns whether a model speaks in the stage: `extraction`, `extraction.2`, `synthesis`."""
    return stage_id.partition(".")[0] not in (TOOLS, RUN_STAGE)


def pieces_of(chunk: Any) -> list[Piece]:
    """Returns what one chunk adds, reasoning first. Never raises, whatever the chunk contains."""
    if not isinstance(chunk, dict):
        return []
    if text := _only_text(chunk):
        return [tuple.__new__(Piece, (text, False))]  # as `Piece(text)`, without the Python call
    content, reasoning, refusal = chunk_text(chunk, is_delta=True)
    pieces = [Piece(reasoning, is_reasoning=True)] if reasoning else []
    if text := content + refusal:
        pieces.append(Piece(text))
    return pieces


def _only_text(chunk: dict[str, Any]) -> str:
    """Returns the text of a chunk that has nothing else, as nearly every one; empty for others.

    It takes a fifth of the time of `chunk_text`.
    """
    try:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text = delta["content"]
        is_plain = len(delta) == 1 and choice["index"] == 0 and isinstance(text, str)
    except (KeyError, TypeError, ValueError):
        return ""
    return text if is_plain else ""
