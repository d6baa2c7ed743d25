"""Joins the fragments of a streamed text; sans-IO."""

from collections.abc import Sequence
from typing import Final

_CUMULATIVE_MIN: Final = 4


def join_fragments(fragments: Sequence[str]) -> str:
    """Joins fragments, or returns the last one if each holds the whole text so far.

    Four fragments that grow are taken as such, unless they consist of very few different characters, like a
    line of dashes.
    """
    fragments = [fragment for fragment in fragments if fragment]
    last = fragments[-1] if fragments else ""
    lengths = [len(f) for f in fragments] if all(last.startswith(f) for f in fragments) else []
    is_cumulative = (
        len(set(lengths)) >= _CUMULATIVE_MIN and lengths == sorted(lengths) and len(set(last)) >= _CUMULATIVE_MIN
    )
    return last if is_cumulative else "".join(fragments)
