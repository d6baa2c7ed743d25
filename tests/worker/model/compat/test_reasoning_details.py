"""Blocks of reasoning merged from fragments. A provider accepts a signed block only unchanged."""

import pytest

from stagebus.worker.model.compat.reasoning_details import merge_details

Detail = dict[str, object]


def text(said: str, index: int | None = 0, **fields: object) -> Detail:
    return {"type": "reasoning.text", "text": said, "index": index, **fields}


def encrypted(data: str, **fields: object) -> Detail:
    return {"type": "reasoning.encrypted", "data": data, **fields}


WORDS = "Let me see what there is."


@pytest.mark.parametrize(
    ("pieces", "blocks"),
    [
        ([], []),
        ([text("Let"), text(" me")], [text("Let me")]),
        ([text("Let", signature=None), text(" me", signature="s")], [text("Let me", signature="s")]),
        ([text("Let", signature="s"), text(" me", signature=None)], [text("Let me", signature="s")]),
        ([text("a"), text("b", 1), text("c"), text("d", 1)], [text("ac"), text("bd", 1)]),
        ([text("a", None), text("b", None)], [text("ab", None)]),
        ([text("a", None), encrypted("x"), text("b", None)], [text("a", None), encrypted("x"), text("b", None)]),
        ([encrypted("x"), encrypted("y")], [encrypted("x"), encrypted("y")]),
        ([encrypted("x", index=0), encrypted("y", index=0)], [encrypted("xy", index=0)]),
        (
            [encrypted("x", index=0, id="a"), encrypted("y", index=0, id="b")],
            [encrypted("x", index=0, id="a"), encrypted("y", index=0, id="b")],
        ),
        ([text(WORDS[:end]) for end in range(1, len(WORDS) + 1)], [text(WORDS)]),
        ([{"odd": 1}], [{"odd": 1}]),
    ],
)
def test_reasoning_fragments_become_blocks(pieces, blocks):
    assert merge_details(pieces) == blocks
