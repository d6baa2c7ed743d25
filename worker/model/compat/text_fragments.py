"""Pieces of a text that came one by one, as one text; sans-IO."""

from collections.abc import Sequence
from typing import Final

_GROWING_MIN: Final = 4


def join_fragments(pieces: Sequence[str]) -> str:
    """The pieces as one text. Where each says all of it so far, and the next ones say more, it is the last.

    Four that grow are no chance, unless they are a few characters over and over, such as a line of dashes.
    """
    said = [piece for piece in pieces if piece]
    whole = said[-1] if said else ""
    lengths = [len(piece) for piece in said] if all(whole.startswith(piece) for piece in said) else []
    is_growing = len(set(lengths)) >= _GROWING_MIN and lengths == sorted(lengths) and len(set(whole)) >= _GROWING_MIN
    return whole if is_growing else "".join(said)
