"""Reasoning in blocks, as OpenRouter and MiniMax stream it, put together so that it can be given back; sans-IO.

    {"type": "reasoning.text", "text": "Let me", "index": 0}
    {"type": "reasoning.text", "text": " see.", "signature": "…", "index": 0}
    {"type": "reasoning.encrypted", "data": "…", "id": "…", "index": 1}

Who signed or encrypted a block takes it back only as it was.
Spec: https://openrouter.ai/docs/use-cases/reasoning-tokens
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from stagebus.worker.model.compat.text_fragments import join_fragments

Detail = dict[str, Any]

_TEXTS: Final = ("text", "summary")
# What a later piece of a block adds to; of all else in it the last that says something counts.
_GROWING: Final = (*_TEXTS, "data")


def parse_details(delta: Mapping[str, Any]) -> list[Detail]:
    """The pieces of blocks that a delta brings."""
    details = delta.get("reasoning_details")
    return [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []


def readable_texts(details: Sequence[Detail]) -> Iterator[str]:
    """Yield what may be read of them."""
    for detail in details:
        yield from (text for name in _TEXTS if isinstance(text := detail.get(name), str))


def merge_details(pieces: Sequence[Detail]) -> list[Detail]:
    """The whole blocks, in their order."""
    blocks: list[Detail] = []
    texts: list[dict[str, list[str]]] = []
    for piece in pieces:
        place = next((place for place in reversed(range(len(blocks))) if _goes_on(piece, blocks, place)), len(blocks))
        if place == len(blocks):
            blocks.append({})
            texts.append({})
        for name, value in piece.items():
            if name in _GROWING and isinstance(value, str):
                texts[place].setdefault(name, []).append(value)
            elif value is not None or name not in blocks[place]:
                blocks[place][name] = value
    return [
        block | {name: join_fragments(values) for name, values in said.items()}
        for block, said in zip(blocks, texts, strict=True)
    ]


def _goes_on(piece: Detail, blocks: Sequence[Detail], place: int) -> bool:
    """Whether it is more of that block: type and index say so, and without an index that no other came between."""
    block = blocks[place]
    if any(block.get(name) != piece.get(name) for name in ("type", "index")):
        return False
    if block.get("id") and piece.get("id") and block["id"] != piece["id"]:
        return False
    return piece.get("index") is not None or (place == len(blocks) - 1 and not piece.get("data"))
