"""Merges reasoning that is streamed in blocks, as by OpenRouter and MiniMax; sans-IO.

    {"type": "reasoning.text", "text": "Let me", "index": 0}
    {"type": "reasoning.text", "text": " see.", "signature": "…", "index": 0}
    {"type": "reasoning.encrypted", "data": "…", "id": "…", "index": 1}

The blocks are returned to the provider in the next round. A provider that signed or encrypted a block accepts it
only unchanged.
Spec: https://openrouter.ai/docs/use-cases/reasoning-tokens
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from stagebus.shared.model_text.text_fragments import join_fragments

Detail = dict[str, Any]

_TEXT_FIELDS: Final = ("text", "summary")
# These fields are concatenated over the fragments of a block. Of every other field the last value counts.
_CONCATENATED: Final = (*_TEXT_FIELDS, "data")
# Blocks of one type and index, told apart by their ids.
_SEARCHED_MAX: Final = 16


def parse_details(delta: Mapping[str, Any]) -> list[Detail]:
    """Returns the fragments of blocks in a delta."""
    details = delta.get("reasoning_details")
    return [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []


def readable_texts(details: Sequence[Detail]) -> Iterator[str]:
    """Yields the texts of the blocks that are not encrypted."""
    for detail in details:
        yield from (text for name in _TEXT_FIELDS if isinstance(text := detail.get(name), str))


def merge_details(fragments: Sequence[Detail]) -> list[Detail]:
    """Returns the whole blocks in their order."""
    blocks: list[Detail] = []
    texts: list[dict[str, list[str]]] = []
    # The last blocks of each type and index: a search through all of them would take quadratic time.
    places_by_kind: dict[str, list[int]] = {}
    for fragment in fragments:
        places = places_by_kind.setdefault(repr((fragment.get("type"), fragment.get("index"))), [])
        last = reversed(places[-_SEARCHED_MAX:])
        place = next((place for place in last if _continues_block(fragment, blocks, place)), len(blocks))
        if place == len(blocks):
            places.append(place)
            blocks.append({})
            texts.append({})
        for name, value in fragment.items():
            if name in _CONCATENATED and isinstance(value, str):
                texts[place].setdefault(name, []).append(value)
            elif value is not None or name not in blocks[place]:
                blocks[place][name] = value
    return [
        block | {name: join_fragments(values) for name, values in block_texts.items()}
        for block, block_texts in zip(blocks, texts, strict=True)
    ]


def _continues_block(fragment: Detail, blocks: Sequence[Detail], place: int) -> bool:
    """Returns whether a fragment continues a block of its type and index. Without an index, the block is the last."""
    block = blocks[place]
    if block.get("id") and fragment.get("id") and block["id"] != fragment["id"]:
        return False
    return fragment.get("index") is not None or (place == len(blocks) - 1 and not fragment.get("data"))
