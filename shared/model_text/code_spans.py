"""Finds code in Markdown: fenced blocks and inline code spans; sans-IO.

A code span ends with its line at the latest, although the specification lets it go on: so a stray backtick
hides no more than the rest of its line.

Spec: https://spec.commonmark.org/0.31.2/#fenced-code-blocks
"""

import re
from typing import Final

_OPENING: Final = re.compile(r"(?:(?<=\n)|\A)[ \t]*(```+|~~~+)[^\n]*|(`+)")
_RUN: Final = re.compile(r"`+")


def find_code_end(text: str, start: int, place: int) -> int:
    """Returns the end of the code that contains a place, or 0 if the place is not in code.

    Args:
        start: an earlier place that is not in code.
    """
    while (opening := _OPENING.search(text, start, place)) is not None:
        end = _fence_end(text, opening) if opening[1] else _inline_end(text, opening)
        if end > place:
            return end
        start = end
    return 0


def _fence_end(text: str, opening: re.Match[str]) -> int:
    """Returns the end of a fenced block. Without a closing fence it is the end of the text."""
    closing = re.compile(rf"\n[ \t]*{opening[1]}[ \t]*(?=\n|\Z)").search(text, opening.end())
    return closing.end() if closing else len(text) + 1


def _inline_end(text: str, opening: re.Match[str]) -> int:
    """Returns the end of a code span. Backticks without a counterpart on the same line are plain text."""
    line_end = text.find("\n", opening.end())
    for run in _RUN.finditer(text, opening.end(), len(text) if line_end < 0 else line_end):
        if len(run[0]) == len(opening[2]):
            return run.end()
    return opening.end()
